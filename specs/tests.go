package specs

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// IsSpecFile reports whether a file of this name in a directory of specs is
// read: *.yaml and *.yml, spec tests excepted.
func IsSpecFile(name string) bool { return isYAML(name) && !IsTestFile(name) }

// IsTestFile reports whether a file of this name holds spec tests:
// *_test.yaml and *_test.yml.
func IsTestFile(name string) bool {
	return isYAML(name) && strings.HasSuffix(strings.TrimSuffix(name, filepath.Ext(name)), "_test")
}

func isYAML(name string) bool {
	ext := filepath.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

// TestFile is one document of spec tests: what should fire when certain events
// come at certain times.
type TestFile struct {
	Specs []string `yaml:"specs" doc:"Files and directories with the specs under test, relative to this file; default: its directory." example:"[orders.yaml]"`
	Tests []Test   `yaml:"tests" required:"true" doc:"The tests; each begins without any state."`
	Pos   Pos      `yaml:"-"`
}

// Test is one spec test.
type Test struct {
	Name       string            `yaml:"name" required:"true" doc:"What the test shows, unique in the file." example:"a paid order is shipped"`
	Start      string            `yaml:"start" doc:"Time at which the test begins, RFC 3339; default 2026-01-01T00:00:00Z." example:"2026-03-29T00:30:00Z"`
	Events     []TestEvent       `yaml:"events" required:"true" doc:"The events that come, in their order."`
	Until      *Duration         `yaml:"until" doc:"How long the test lasts, from its start, so that deadlines after the last event pass; default: to the last event." example:"10m"`
	Expect     []ExpectedFiring  `yaml:"expect" doc:"What fires, in any order; an empty list when nothing does."`
	Strict     *bool             `yaml:"strict" doc:"Whether a firing that is not expected fails the test; default true."`
	Verdicts   []ExpectedVerdict `yaml:"verdicts" doc:"What sensors must say of events beside firing; they may say more."`
	Unmatched  *int              `yaml:"unmatched" min:"0" doc:"Number of stored events that no sensor wants."`
	Filtered   *int              `yaml:"filtered" min:"0" doc:"Number of events that the filter of their source drops."`
	Duplicates *int              `yaml:"duplicates" min:"0" doc:"Number of events that are not stored because their id was there before."`
	Pos        Pos               `yaml:"-"`
}

// TestStart is when tests begin that do not say.
func TestStart() time.Time { return time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC) }

// StartTime is when the test begins.
func (t *Test) StartTime() time.Time {
	if at, err := time.Parse(time.RFC3339, t.Start); err == nil {
		return at.UTC()
	}
	return TestStart()
}

// TestEvent is one event of a spec test.
type TestEvent struct {
	At              *Duration         `yaml:"at" doc:"When it comes, from the start of the test; default: with the one before." example:"5m"`
	After           *Duration         `yaml:"after" doc:"When it comes, after the one before; instead of at." example:"30s"`
	Source          string            `yaml:"source" doc:"Name of the EventSource; without it the event is one sent by hand, and has a type."`
	Event           string            `yaml:"event" doc:"Name of the event in the EventSource."`
	Type            string            `yaml:"type" doc:"CloudEvents type; default: what the source gives it, as an event whose producer named none."`
	ID              string            `yaml:"id" doc:"The producer's id; an event with the same one within 10 minutes is a duplicate. Default: a new one."`
	Subject         string            `yaml:"subject" doc:"CloudEvents subject."`
	DataContentType string            `yaml:"datacontenttype" doc:"Type of the data; default application/json." example:"text/plain"`
	Extensions      map[string]string `yaml:"extensions" doc:"CloudEvents extension attributes."`
	Request         Value             `yaml:"request" doc:"The HTTP request that carried the event: method, path, params, query, headers." example:"{headers: {x-github-event: push}}"`
	Data            Value             `yaml:"data" doc:"The payload as it comes from outside." example:"{orderId: o1, total: 120}"`
	Result          *TestResult       `yaml:"result" doc:"How a call ended, instead of an event from outside: the event that the engine would store."`
	Pos             Pos               `yaml:"-"`
}

// TestResult stands for the event that tells how the job of a firing ended.
type TestResult struct {
	Trigger  string  `yaml:"trigger" doc:"Name of the trigger that called: the result is that of its oldest firing in this test that has none yet."`
	Sensor   string  `yaml:"sensor" doc:"Name of its Sensor; default: the only one with such a trigger."`
	Function string  `yaml:"function" doc:"Name of the function, for a result from elsewhere: no firing of this test is answered, and sensor and trigger, if given, only say who called." example:"build"`
	Key      Value   `yaml:"key" doc:"Value of correlate of the firing that is answered, or of the one elsewhere; default: any, or none." example:"o1"`
	Item     *int    `yaml:"item" min:"0" doc:"Place in its fan-out of the firing that is answered; default: any."`
	Outcome  Outcome `yaml:"outcome" enum:"succeeded,failed" doc:"How the job ended; default: succeeded, or failed when error is given."`
	Output   Value   `yaml:"output" doc:"The answer of the function." example:"{image: app}"`
	Error    string  `yaml:"error" doc:"Why it failed; default: the reason why the input could not be rendered, or failed."`
	Pos      Pos     `yaml:"-"`
}

// ExpectedFiring is one firing that a spec test expects. What is not given is
// not compared.
type ExpectedFiring struct {
	Sensor   string    `yaml:"sensor" required:"true" doc:"Name of the Sensor; that of a Subscription is subscription.NAME."`
	Trigger  string    `yaml:"trigger" doc:"Name of the trigger."`
	At       *Duration `yaml:"at" doc:"When it fires, from the start of the test." example:"5m"`
	Key      Value     `yaml:"key" doc:"Value of correlate." example:"o1"`
	Function string    `yaml:"function" doc:"Name of the Function that is called, or the kind of an inline one."`
	Input    Value     `yaml:"input" doc:"The whole input of the function: the rendered input of the trigger, or the data of the last event." example:"{order: o1}"`
	Contains Value     `yaml:"contains" doc:"Part of the input: objects in it may have more keys."`
	Config   Value     `yaml:"config" doc:"Rendered texts and templates of an inline function; only the keys given are compared." example:"{message: shipped order o1}"`
	Error    string    `yaml:"error" doc:"Part of the reason why the input could not be rendered, so that the firing is a dead letter."`
	Pos      Pos       `yaml:"-"`
}

// ExpectedVerdict is a verdict that a spec test expects.
type ExpectedVerdict struct {
	Sensor     string    `yaml:"sensor" required:"true" doc:"Name of the Sensor; that of a Subscription is subscription.NAME."`
	Outcome    string    `yaml:"outcome" required:"true" enum:"missing,failed,superseded,expired,answered,suppressed,debounced,skipped,evicted,waiting" doc:"What the sensor says."`
	Dependency string    `yaml:"dependency" doc:"Name of the dependency."`
	Trigger    string    `yaml:"trigger" doc:"Name of the trigger."`
	At         *Duration `yaml:"at" doc:"When, from the start of the test." example:"10m"`
	Detail     string    `yaml:"detail" doc:"Part of the text that explains it, such as the path that is missing."`
	Pos        Pos       `yaml:"-"`
}

// LoadedTests are the spec tests found.
type LoadedTests struct {
	// Files are the documents without errors, sorted by place. Paths in them
	// are as written.
	Files []TestFile
	// Diagnostics are all problems found, sorted.
	Diagnostics Diagnostics
}

// LoadTests reads spec tests: the given files, and every file with
// [IsTestFile] in the given directories, found as [Loader.Load] finds specs.
// What is wrong with the files is in the diagnostics; the error is that of ctx
// alone.
func (l Loader) LoadTests(ctx context.Context, paths ...string) (*LoadedTests, error) {
	out := &LoadedTests{}
	w := walker{limit: l.limits().size, seen: map[string]bool{}, tests: true}
	for _, path := range paths {
		_, err := w.root(ctx, path, func(name string, data []byte) {
			files, found := l.LoadTestBytes(name, data)
			out.Files = append(out.Files, files...)
			out.Diagnostics = append(out.Diagnostics, found...)
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(out.Files, func(a, b TestFile) int { return strings.Compare(a.Pos.File, b.Pos.File) })
	out.Diagnostics = append(out.Diagnostics, w.found...).Sort()
	return out, nil
}

// LoadTestBytes reads documents of spec tests from memory; name stands for the
// file. It returns those without errors.
func (l Loader) LoadTestBytes(name string, data []byte) ([]TestFile, Diagnostics) {
	src := &source{file: name}
	docs, ok := src.readDocuments(data, l.limits())
	var out []TestFile
	for _, raw := range docs {
		d := &decoder{source: src, types: l.Types, table: typeTable{}}
		before := d.errors - raw.errors
		f := TestFile{}
		d.testFile(raw.root, &f)
		if ok && d.errors == before {
			out = append(out, f)
		}
	}
	return out, src.found.Sort()
}

func (d *decoder) testFile(n *node, f *TestFile) {
	if n.get("apiVersion") != nil || n.get("kind") != nil {
		d.errorf(n, "", CodeTestFile, "rename the file so that its name does not end in _test", "a resource in a file of spec tests is not loaded")
		return
	}
	d.structure(n, reflect.ValueOf(f).Elem(), "", nil, nil)
	f.Pos = d.place(n)
	tests := n.get("tests")
	if tests == nil {
		return
	}
	seen := map[string]*node{}
	for i, t := range tests.items {
		if i >= len(f.Tests) || t.kind != mapNode {
			continue
		}
		path := "tests[" + strconv.Itoa(i) + "]"
		if name := t.get("name"); name != nil && name.kind == scalarNode {
			if first := seen[name.value]; first != nil {
				d.duplicate(name, first, path+".name", "test")
			} else {
				seen[name.value] = name
			}
		}
		d.test(t, &f.Tests[i], path)
	}
}

// test checks what the types of the fields cannot say.
func (d *decoder) test(n *node, t *Test, path string) {
	if n.get("expect") == nil || n.get("expect").null() {
		d.errorf(n, path+".expect", CodeMissingKey, "write expect: [] when nothing fires", "%q is missing", "expect")
	}
	if s := n.get("start"); s != nil && t.Start != "" {
		if _, err := time.Parse(time.RFC3339, t.Start); err != nil {
			d.errorf(s, path+".start", CodeInvalidValue, "write it as 2026-01-01T00:00:00Z", "%s is not a time", s.describe())
		}
	}
	last := Duration(0)
	if events := n.get("events"); events != nil {
		for i, e := range events.items {
			if i < len(t.Events) && e.kind == mapNode {
				last = d.testEvent(e, &t.Events[i], last, path+".events["+strconv.Itoa(i)+"]")
			}
		}
	}
	switch u := n.get("until"); {
	case t.Until == nil:
		t.Until = &last
	case *t.Until < last:
		d.errorf(u, path+".until", CodeOutOfRange, "at least "+last.short(), "%s is before the last event", u.describe())
	}
	if expect := n.get("expect"); expect != nil {
		for i, e := range expect.items {
			if in, part := e.get("input"), e.get("contains"); in != nil && part != nil {
				d.errorf(part, path+".expect["+strconv.Itoa(i)+"].contains", CodeInvalidValue, "keep one of them", "input is given, and contains too")
			}
		}
	}
}

// testEvent fills in when the event comes, which it returns.
func (d *decoder) testEvent(n *node, e *TestEvent, last Duration, path string) Duration {
	at := last
	switch a := n.get("at"); {
	case e.At != nil && e.After != nil:
		d.errorf(n.get("after"), path+".after", CodeInvalidValue, "keep one of them", "at is given, and after too")
	case e.After != nil:
		if at += *e.After; at < last {
			d.errorf(n.get("after"), path+".after", CodeOutOfRange, "", "%s is too late", n.get("after").describe())
			at = last
		}
	case e.At != nil && *e.At < last:
		d.errorf(a, path+".at", CodeOutOfRange, "events are written in their order; at least "+last.short(), "%s is before the event above", a.describe())
	case e.At != nil:
		at = *e.At
	}
	e.At = &at
	if r := n.get("result"); r != nil {
		if e.Result != nil && r.kind == mapNode { // else it is said already
			d.testResult(n, r, e, path)
		}
		return at
	}
	switch {
	case e.Source == "" && e.Event != "":
		d.errorf(n.get("event"), path+".source", CodeMissingKey, "name the EventSource", "%q is missing", "source")
	case e.Source == "" && e.Type == "":
		d.errorf(n, path+".source", CodeMissingKey, "give source and event, or the type of an event sent by hand", "the event comes from nowhere")
	case e.Source != "" && e.Event == "":
		d.errorf(n, path+".event", CodeMissingKey, "name the event of the EventSource", "%q is missing", "event")
	}
	return at
}

// testResult checks an event that is a result, and fills in its outcome.
func (d *decoder) testResult(n, r *node, e *TestEvent, path string) {
	for _, key := range []string{"source", "event", "type", "id", "subject", "datacontenttype", "extensions", "request", "data"} {
		if k := n.get(key); k != nil {
			d.errorf(k, join(path, key), CodeInvalidValue, "keep one of them", "result is given, and %s too", key)
		}
	}
	path = join(path, "result")
	res := e.Result
	switch {
	case res.Trigger == "" && (res.Function == "" || res.Sensor != ""):
		d.errorf(r, join(path, "trigger"), CodeMissingKey, "name the trigger whose firing it answers, or the function alone", "%q is missing", "trigger")
	case res.Function != "" && res.Trigger != "" && res.Sensor == "":
		d.errorf(r, join(path, "sensor"), CodeMissingKey, "remove function if a firing of this test is meant", "%q is missing", "sensor")
	case res.Function != "" && res.Item != nil:
		d.errorf(r.get("item"), join(path, "item"), CodeInvalidValue, "remove it", "a result from elsewhere answers no firing")
	}
	switch {
	case res.Outcome == "" && res.Error == "":
		res.Outcome = OutcomeSucceeded
	case res.Outcome == "":
		res.Outcome = OutcomeFailed
	case res.Outcome == OutcomeSucceeded && res.Error != "":
		d.errorf(r.get("error"), join(path, "error"), CodeInvalidValue, "write outcome: failed, or remove it", "what succeeded has no error")
	}
}

// TestSchema returns the JSON Schema (2020-12) of a file of spec tests.
func TestSchema() ([]byte, error) {
	b := schemaBuilder{table: typeTable{}, defs: object{}}
	s := b.structure(reflect.ValueOf(&TestFile{}).Elem(), "tests", nil)
	test := s["properties"].(object)["tests"].(object)["items"].(object)
	test["required"] = append(test["required"].([]string), "expect")
	for name, def := range commonDefs() {
		if name == "Duration" || name == "Value" {
			b.defs[name] = def
		}
	}
	if len(b.problems) > 0 {
		return nil, errors.Join(b.problems...)
	}
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["title"] = "engine spec tests"
	s["description"] = "One document of a *_test.yaml file."
	s["$defs"] = b.defs
	out, err := json.MarshalIndent(s, "", "  ")
	return append(out, '\n'), err
}
