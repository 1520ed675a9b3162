package docs_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/spectest"
	sourcetypes "github.com/sensor-engine/engine/sources/all"
	"github.com/sensor-engine/engine/specs"
	functionkinds "github.com/sensor-engine/engine/triggers/all"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

var update = flag.Bool("update", false, "write the generated parts of the pages")

var catalog = engine.Catalog{Sources: sourcetypes.All(), Functions: functionkinds.All()}

// pages are everything in this directory and the pages for readers elsewhere, by
// path from here.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	examples, err := filepath.Glob("../examples/*/README.md")
	if err != nil {
		t.Fatal(err)
	}
	names = append(names, examples...)
	for _, name := range append(names, "../README.md", "../CONTRIBUTING.md", "../CHANGELOG.md") {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(b)
	}
	return out
}

// generated are the parts made from code, by the name in their markers
// `<!-- generated: NAME -->` and `<!-- end -->`.
func generated() map[string]string {
	out := map[string]string{
		"spec of a Sensor":       table(&specs.Sensor{}, "Dependencies", "Triggers"),
		"dependency":             table(&specs.Dependency{}),
		"trigger":                table(&specs.Trigger{}, "DeadLetter"),
		"intake":                 table(&specs.Intake{}),
		"spec of a Function":     table(&specs.Function{}),
		"spec of a Subscription": table(&specs.Subscription{}, "DeadLetter"),
		"spec of an Endpoint":    table(&specs.Endpoint{}),
		"spec of a DriverType":   table(&specs.DriverType{}),
		"spec of a Secret":       table(&specs.Secret{}),
		"delivery":               table(&specs.Delivery{}),
		"spec test":              table(&specs.Test{}, "Events", "Expect", "Verdicts"),
		"test event":             table(&specs.TestEvent{}),
		"expected firing":        table(&specs.ExpectedFiring{}),
		"expected verdict":       table(&specs.ExpectedVerdict{}),
	}
	out["promises of calls"], out["crashes of callees"] = triggertest.Table(), triggertest.StepTable()
	for _, t := range catalog.Sources {
		out["source "+t.Name] = section(t.Type)
	}
	for _, t := range catalog.Functions {
		out["function "+t.Name] = section(t.Type)
	}
	return out
}

func section(t specs.Type) string {
	return "\n" + t.Doc + "\n" + table(t.New())
}

// table lists the keys of a config, nested ones with their path. The fields
// named in flat are not followed into.
func table(config any, flat ...string) string {
	var b strings.Builder
	b.WriteString("\n| key | type | |\n|---|---|---|\n")
	for _, o := range specs.Options(config, flat...) {
		text := cell(o.Doc)
		if o.Example != "" {
			text += " Example: `" + strings.ReplaceAll(o.Example, "|", `\|`) + "`."
		}
		kind := cell(o.Type)
		if o.Enum != nil {
			kind = "`" + strings.Join(o.Enum, "`, `") + "`"
		}
		switch {
		case o.Min != "" && o.Max != "":
			kind += ", " + o.Min + " to " + o.Max
		case o.Min != "":
			kind += ", at least " + o.Min
		}
		if o.Required {
			kind += ", required"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", o.Path, kind, text)
	}
	return b.String() + "\n"
}

var placeholder = regexp.MustCompile(`\$?\{[^}]*\}(?:\.\{[^}]*\})*`)

// cell makes text safe for a cell of a Markdown table. What is in braces is
// code; a bare $ may begin a formula.
func cell(s string) string {
	s = placeholder.ReplaceAllString(s, "`$0`")
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`).Replace(s)
}

var marker = regexp.MustCompile(`(?s)<!-- generated: (.+?) -->\n(.*?)<!-- end -->`)

// TestGenerated: every source type and function kind has its reference, and it
// is that of the code. With -update the pages are written.
func TestGenerated(t *testing.T) {
	want := generated()
	for name, text := range pages(t) {
		made := marker.ReplaceAllStringFunc(text, func(part string) string {
			m := marker.FindStringSubmatch(part)
			body, ok := want[m[1]]
			if !ok {
				t.Errorf("%s: nothing is generated for %q", name, m[1])
				return part
			}
			delete(want, m[1])
			return "<!-- generated: " + m[1] + " -->\n" + body + "<!-- end -->"
		})
		if made == text {
			continue
		}
		if !*update {
			t.Errorf("%s is out of date: go test ./docs -update", name)
			continue
		}
		if err := os.WriteFile(name, []byte(made), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name := range want {
		t.Errorf("no page has <!-- generated: %s -->", name)
	}
}

// block is one fenced block of a page.
type block struct {
	place, info, text string
}

func blocks(name, text string) (out []block) {
	var b *block
	for i, line := range strings.Split(text, "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && b == nil:
			b = &block{place: fmt.Sprintf("%s:%d", name, i+1), info: info}
		case fence:
			out = append(out, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		}
	}
	return out
}

// TestSpecs: what the pages show as specs is valid; blocks marked `yaml bad`
// are not.
func TestSpecs(t *testing.T) {
	n := 0
	for name, text := range pages(t) {
		for _, b := range blocks(name, text) {
			if !strings.HasPrefix(b.info, "yaml") || !regexp.MustCompile(`(?m)^apiVersion:`).MatchString(b.text) {
				continue
			}
			if name == "diagnostics.md" {
				continue // excerpts of what is wrong, checked with the diagnostics
			}
			n++
			l := catalog.Loader().LoadBytes(b.place, []byte(b.text))
			found := slices.Concat(l.Diagnostics, engine.NewCompiler(catalog).Check(l.Set(), l.Invalid...))
			switch bad := b.info == "yaml bad"; {
			case bad && !found.HasErrors():
				t.Errorf("%s is marked as bad and is valid", b.place)
			case !bad && len(found) > 0:
				t.Errorf("%s: %v", b.place, found)
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d specs found", n)
	}
}

// TestSpecTests: the first tests of testing.md pass, and what it shows of their
// output is what comes out.
func TestSpecTests(t *testing.T) {
	page := pages(t)["testing.md"]
	var set *specs.Set
	var tests []specs.TestFile
	for _, b := range blocks("testing.md", page) {
		switch {
		case b.info == "yaml test" && tests == nil: // others are those of TestSpecTestsOfPages
			files, found := catalog.Loader().LoadTestBytes("orders_test.yaml", []byte(b.text))
			if len(found) > 0 {
				t.Fatal(b.place, found)
			}
			tests = append(tests, files...)
		case set == nil && b.info == "yaml":
			set = catalog.Loader().LoadBytes("orders.yaml", []byte(b.text)).Set()
		}
	}
	if set == nil || len(tests) != 1 || len(tests[0].Tests) == 0 {
		t.Fatalf("%d files of tests", len(tests))
	}
	runner := spectest.New(set, engine.NewCompiler(catalog).Sensors(set), catalog.Sources)
	run := func(test *specs.Test) []spectest.Failure {
		if found := runner.Check(test); len(found) > 0 {
			t.Error(found)
		}
		res, err := runner.Run(test)
		if err != nil {
			t.Error(err)
		}
		return res.Failures
	}
	for i := range tests[0].Tests {
		test := &tests[0].Tests[i]
		if failures := run(test); len(failures) > 0 {
			t.Errorf("%s: %v", test.Name, failures)
		}
		if line := "ok    " + test.Pos.String() + ": " + test.Name + "\n"; !strings.Contains(page, line) {
			t.Errorf("the page does not show %q", line)
		}
	}
	// The failure shown: another time and amount.
	bad := &tests[0].Tests[0]
	at := specs.Duration(6 * time.Minute)
	bad.Expect[0].At, bad.Expect[0].Input.Root.(map[string]any)["paid"] = &at, int64(100)
	bad.Expect[0].Trigger, bad.Expect[0].Key.Set = "", false
	failures := run(bad)
	if len(failures) != 1 {
		t.Fatal(failures)
	}
	for _, line := range append(failures[0].Diff, failures[0].Pos.String()+": "+failures[0].Message) {
		if !strings.Contains(page, strings.TrimRight("      "+line, " ")) {
			t.Errorf("the page does not show %q", line)
		}
	}
}

// TestSpecTestsOfPages: a block marked `yaml test` is about the specs shown
// before it, and passes.
func TestSpecTestsOfPages(t *testing.T) {
	for name, text := range pages(t) {
		var before block
		for _, b := range blocks(name, text) {
			if b.info == "yaml" {
				before = b
			}
			if b.info != "yaml test" {
				continue
			}
			set := catalog.Loader().LoadBytes("specs.yaml", []byte(before.text)).Set()
			files, found := catalog.Loader().LoadTestBytes("specs_test.yaml", []byte(b.text))
			if len(found) > 0 || len(files) == 0 {
				t.Fatal(b.place, found)
			}
			runner := spectest.New(set, engine.NewCompiler(catalog).Sensors(set), catalog.Sources)
			for i := range files[0].Tests {
				test := &files[0].Tests[i]
				if found := runner.Check(test); len(found) > 0 {
					t.Error(b.place, found)
					continue
				}
				res, err := runner.Run(test)
				if err != nil || len(res.Failures) > 0 {
					t.Errorf("%s: %s: %v (error %v)", b.place, test.Name, res.Failures, err)
				}
			}
		}
	}
}

// TestCommands: the commands of the README exist, and so do the make targets,
// flags and metrics that pages name.
func TestCommands(t *testing.T) {
	all := pages(t)
	for _, cmd := range []string{"go run ./cmd/engine run examples/quickstart", "make test"} {
		if !strings.Contains(all["../README.md"], cmd) {
			t.Errorf("README.md does not have %q", cmd)
		}
	}
	l, err := catalog.Loader().Load(t.Context(), "../examples/quickstart")
	if err != nil || l.Diagnostics.HasErrors() || len(l.Resources) == 0 {
		t.Errorf("examples/quickstart: %d resources, %v %v", len(l.Resources), l.Diagnostics, err)
	}
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := os.ReadFile("../engine/api/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	metric := regexp.MustCompile("`engine_([a-z_]+)[`*]")
	target := regexp.MustCompile("`make ([a-z]+)|(?m:^make ([a-z]+))")
	option := regexp.MustCompile("[` ](--[a-z][a-z-]+)")
	for name, text := range all {
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + m[2] + `:`).Match(makefile) {
				t.Errorf("%s: the Makefile has no target %s", name, m[1]+m[2])
			}
		}
		for _, m := range metric.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(string(metrics), `"`+m[1]) {
				t.Errorf("%s: there is no metric engine_%s", name, m[1])
			}
		}
		if name == "cli.md" || name == "drivers.md" { // flags of other programs
			continue
		}
		text = marker.ReplaceAllString(text, "") // examples of configs
		for _, m := range option.FindAllStringSubmatch(text, -1) {
			if !strings.Contains(all["cli.md"], "`"+m[1]+"`") {
				t.Errorf("%s: no verb has the flag %s", name, m[1])
			}
		}
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"`)
	named   = regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Za-z]+)`\\]\\(([^)]+)\\)")
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	fenced  = regexp.MustCompile("(?s)```.*?```")
)

// anchors are the places of a page that links may name.
func anchors(text string) (out []string) {
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		slug := strings.ToLower(strings.ReplaceAll(m[1], "`", ""))
		slug = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(slug, "")
		out = append(out, strings.ReplaceAll(slug, " ", "-"))
	}
	return out
}

// TestLinks: relative links lead somewhere, and tests that are named exist.
func TestLinks(t *testing.T) {
	for name, text := range pages(t) {
		text = fenced.ReplaceAllString(text, "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			path, anchor, _ := strings.Cut(m[1]+m[2], "#")
			if strings.Contains(path, "://") {
				continue
			}
			file := filepath.Join(filepath.Dir(name), path)
			if path == "" {
				file = name
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: link to %s: %v", name, m[1]+m[2], err)
				continue
			}
			if anchor == "" {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil || !slices.Contains(anchors(string(b)), anchor) {
				t.Errorf("%s: %s has no heading #%s", name, file, anchor)
			}
		}
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(name), m[2]))
			if err != nil || !strings.Contains(string(b), "func "+m[1]+"(") {
				t.Errorf("%s: there is no %s in %s", name, m[1], m[2])
			}
		}
	}
}

// TestNamedTests: the tests that pages name, as what shows a behaviour, exist.
func TestNamedTests(t *testing.T) {
	known := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllStringSubmatch(string(b), -1) {
			known[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range pages(t) {
		for _, m := range testName.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			if !known[m[1]] {
				t.Errorf("%s: there is no %s", name, m[1])
			}
		}
	}
}

var (
	testName = regexp.MustCompile("`(Test[A-Z]\\w*)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
)
