package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/specs"
)

// fields is an object whose keys stay in order.
type fields []field

type field struct {
	name  string
	value any
}

// with adds a key, unless its value is empty.
func (f fields) with(name string, value any) fields {
	switch v := value.(type) {
	case string:
		if v == "" {
			return f
		}
	case []string:
		if len(v) == 0 {
			return f
		}
	case fields:
		if len(v) == 0 {
			return f
		}
	case bool:
		if !v {
			return f
		}
	case int:
		if v == 0 {
			return f
		}
	case nil:
		return f
	}
	return append(f, field{name, value})
}

// MarshalJSON writes the keys in their order.
func (f fields) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range f {
		if i > 0 {
			b.WriteByte(',')
		}
		v, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(append(bus.AppendJSONString(nil, m.name), ':'))
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (e *env) newVerb() *cobra.Command {
	var n newResource
	cmd := group(&cobra.Command{
		Use:   "new",
		Short: "Print or save the YAML of a new resource",
		Long: `Prints one resource, made of flags, or saves it in the directory the engine
follows:

  engine new function hello specs/hello.py --save specs/hello.yaml

What would not be valid is refused. Whether what it references exists is not
looked at: that may come later. Paths in a resource are relative to its file; in
one that is printed they are as they were given.`,
	}, e.newFunctionVerb(&n), e.newSubscriptionVerb(&n), e.newEndpointVerb(&n), e.newSourceVerb(&n), e.newSensorVerb(&n))
	cmd.PersistentFlags().StringVar(&n.save, "save", "", "new file to write it to, instead of printing it")
	return cmd
}

// newResource is where a new resource goes.
type newResource struct {
	save string // a file that is not there yet, "" for standard output
}

// relative is a path as the file of the resource writes it.
func (n *newResource) relative(path string) (string, error) {
	if n.save == "" || path == "" || filepath.IsAbs(path) {
		return path, nil
	}
	r, err := filepath.Rel(filepath.Dir(n.save), path)
	if err != nil {
		return "", fmt.Errorf("%s cannot be written relative to %s: %w", path, n.save, err)
	}
	return filepath.ToSlash(r), nil
}

// write prints or saves a document.
func (n *newResource) write(e *env, doc []byte) error {
	if n.save == "" {
		_, err := e.stdout.Write(doc)
		return err
	}
	f, err := os.OpenFile(n.save, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; nothing was written", n.save)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(doc)
	return errors.Join(err, f.Close())
}

// made prints or saves a resource, unless it is not valid.
func (n *newResource) made(e *env, kind specs.Kind, name string, spec fields) error {
	doc := fields{
		{"apiVersion", specs.APIVersion},
		{"kind", string(kind)},
		{"metadata", fields{{"name", name}}},
		{"spec", spec},
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := writeYAML(&out, b); err != nil {
		return err
	}
	cat := catalog()
	loaded := cat.Loader().LoadBytes(cmp.Or(n.save, "new.yaml"), out.Bytes())
	found := append(specs.Diagnostics{}, loaded.Diagnostics...)
	if !found.HasErrors() {
		found = append(found, engine.NewCompiler(cat).Check(loaded.Set())...)
	}
	found = slices.DeleteFunc(found, func(d specs.Diagnostic) bool {
		return d.Severity != specs.Error || d.Code == specs.CodeUnknownReference || d.Code == specs.CodeUnreadable
	})
	if len(found) == 0 {
		return n.write(e, out.Bytes())
	}
	for _, d := range found {
		what := d.Message
		if d.Path != "" {
			what = d.Path + ": " + what
		}
		if d.Hint != "" {
			what += " (" + d.Hint + ")"
		}
		_, _ = fmt.Fprintln(e.stderr, "engine: "+clean(what))
	}
	return errFindings
}

// delivery are the flags of how a function is called.
type deliveryFlags struct {
	timeout     string
	concurrency int
	retries     int
}

func (d *deliveryFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&d.timeout, "timeout", "", "longest time of one call, such as 10s; a number without a unit is milliseconds")
	fs.IntVar(&d.concurrency, "concurrency", 0, "most calls at the same time")
	fs.IntVar(&d.retries, "attempts", 0, "number of all calls, the first included")
}

func (d *deliveryFlags) spec(s fields) fields {
	s = s.with("timeout", duration(d.timeout)).with("concurrency", d.concurrency)
	if d.retries != 0 {
		s = s.with("retry", fields{{"attempts", d.retries}})
	}
	return s
}

// duration gives a number the unit that Dispatch meant.
func duration(s string) string {
	if s != "" && strings.Trim(s, "0123456789") == "" {
		return s + "ms"
	}
	return s
}

// secretFlag adds --secret.
func secretFlag(fs *pflag.FlagSet, to *[]string) {
	fs.StringSliceVar(to, "secret", nil, "name of a Secret whose values are passed on; may be repeated or joined with commas")
}

func (e *env) newFunctionVerb(n *newResource) *cobra.Command {
	var handler, url, deps, in, out string
	var command, secrets []string
	var d deliveryFlags
	cmd := &cobra.Command{
		Use:   "function NAME [PATH]",
		Short: "A Function: a file, a directory, a program or a URL",
		Long: `Makes a Function. PATH is a file (.py: python, .js: node, .wasm: wasm), or a
directory with --handler. Instead of it, --url makes an HTTP function and
--command a program. Of other kinds, engine functions KIND shows an example.`,
		Example: `  engine new function hello hello.py --schema-in hello.in.json --secret open-sesame
  engine new function hello functions/ --handler hello.handle --runtime-deps requirements.txt
  engine new function ship --url https://shipping.example.com/orders --timeout 10s`,
		Args: cobra.RangeArgs(1, 2),
	}
	fs := cmd.Flags()
	fs.StringVar(&handler, "handler", "", "the function: module.function for python, a file for node")
	fs.StringVar(&url, "url", "", "address of an HTTP function")
	fs.StringSliceVar(&command, "command", nil, "program and arguments, joined with commas")
	fs.StringVar(&deps, "runtime-deps", "", "requirements.txt or package.json whose packages are installed")
	secretFlag(fs, &secrets)
	fs.StringVar(&in, "schema-in", "", "file with the JSON Schema of the input")
	fs.StringVar(&out, "schema-out", "", "file with the JSON Schema of the output")
	d.add(fs)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		path := ""
		if len(args) > 1 {
			path = args[1]
		}
		given := 0
		for _, ok := range []bool{path != "", url != "", len(command) > 0} {
			if ok {
				given++
			}
		}
		if given != 1 {
			return usagef("give one of PATH, --url and --command; of other kinds, engine functions KIND shows an example")
		}
		var spec fields
		switch {
		case url != "":
			spec = spec.with("http", fields{{"url", url}})
		case len(command) > 0:
			spec = spec.with("exec", fields{{"command", command}})
		default:
			kind, config, err := n.code(path, handler, deps)
			if err != nil {
				return err
			}
			spec = spec.with(kind, config)
		}
		in, err := n.relative(in)
		if err != nil {
			return err
		}
		out, err := n.relative(out)
		if err != nil {
			return err
		}
		if in != "" {
			spec = spec.with("input", fields{{"schema", in}})
		}
		if out != "" {
			spec = spec.with("output", fields{{"schema", out}})
		}
		return n.made(e, specs.KindFunction, args[0], d.spec(spec.with("secrets", secrets)))
	}
	return cmd
}

// code is the kind and the config of a function in a file or directory.
func (n *newResource) code(path, handler, deps string) (kind string, config fields, err error) {
	file := true
	if info, err := os.Stat(path); err == nil && info.IsDir() || strings.HasSuffix(path, "/") {
		file = false
	}
	if path, err = n.relative(path); err != nil {
		return "", nil, err
	}
	if deps, err = n.relative(deps); err != nil {
		return "", nil, err
	}
	switch ext := filepath.Ext(path); {
	case file && ext == ".py":
		kind, config = "python", fields{{"file", path}}
	case file && (ext == ".js" || ext == ".cjs" || ext == ".mjs"):
		kind, config = "node", fields{{"file", path}}
	case file && ext == ".wasm":
		return "wasm", fields{{"file", path}}, nil
	case file:
		return "", nil, usagef("%s is neither .py, .js nor .wasm, nor a directory", path)
	case handler == "":
		return "", nil, usagef("handler is required, source path %s is a directory", path)
	case strings.HasSuffix(handler, "js"):
		kind, config = "node", fields{{"dir", path}}
	default:
		kind, config = "python", fields{{"dir", path}}
	}
	if handler != "" && (kind == "python" || !file) {
		config = config.with("handler", handler)
	}
	if kind == "python" {
		return kind, config.with("requirements", deps), nil
	}
	return kind, config.with("package", deps), nil
}

// unnamed is what a name must not have.
var unnamed = regexp.MustCompile(`[^a-z0-9]+`)

// nameOf makes a name of words.
func nameOf(words ...string) string {
	s := strings.Trim(unnamed.ReplaceAllString(strings.ToLower(strings.Join(words, "-")), "-"), "-")
	return strings.TrimRight(s[:min(len(s), 63)], "-")
}

func (e *env) newSubscriptionVerb(n *newResource) *cobra.Command {
	var eventType, name, source, when, input string
	var secrets []string
	var d deliveryFlags
	cmd := &cobra.Command{
		Use:     "subscription FUNCTION --event-type TYPE",
		Short:   "A Subscription: a function for every event of a type",
		Example: "  engine new subscription hello-py --event-type ticker.tick --secret open-sesame",
		Args:    cobra.ExactArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVar(&eventType, "event-type", "", "CloudEvents type of the events, or a glob")
	fs.StringVar(&name, "name", "", "name of the Subscription; default: made of function and event type")
	fs.StringVar(&source, "source", "", "name of the EventSource, or a glob")
	fs.StringVar(&when, "when", "", "expression over the event that must be true")
	fs.StringVar(&input, "input", "", "what the function gets instead of the event's data, as JSON")
	secretFlag(fs, &secrets)
	d.add(fs)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if eventType == "" {
			return usagef("--event-type is missing")
		}
		if name == "" {
			name = nameOf(args[0], eventType)
		}
		spec := fields{{"eventType", eventType}}.with("source", source).with("when", when).with("function", args[0])
		in, err := jsonFlag("--input", input)
		if err != nil {
			return err
		}
		return n.made(e, specs.KindSubscription, name, d.spec(spec.with("input", in).with("secrets", secrets)))
	}
	return cmd
}

// jsonFlag is the value of a flag that holds JSON, nil for none.
func jsonFlag(flag, s string) (any, error) {
	if s == "" {
		return nil, nil
	}
	if !bus.ValidJSON([]byte(s)) {
		return nil, usagef("%s is not JSON: %s", flag, s)
	}
	return json.RawMessage(s), nil
}

func (e *env) newEndpointVerb(n *newResource) *cobra.Command {
	var methods, paths, hosts, secrets []string
	var auth, timeout string
	var httpsOnly, disable, cors, async bool
	cmd := &cobra.Command{
		Use:   "endpoint NAME FUNCTION",
		Short: "An Endpoint: a function behind an HTTP path",
		Long: `Makes an Endpoint. --auth is public, bearer=SECRET/KEY, basic=USER:SECRET/KEY,
hmac=HEADER:SECRET/KEY or apiKeys=HEADER:SECRET. A value that would not be enforced
is refused.`,
		Example: `  engine new endpoint post-hello hello-py -m POST -p /hello --auth bearer=keys/token
  engine new endpoint hello hello-js -m GET,POST -p /hello -d api.example.com --cors`,
		Args: cobra.ExactArgs(2),
	}
	fs := cmd.Flags()
	fs.StringSliceVarP(&methods, "method", "m", []string{"GET"}, "HTTP methods; may be repeated or joined with commas")
	fs.StringSliceVarP(&paths, "path", "p", nil, "path, such as /hello/{name}; default: / and the name")
	fs.StringSliceVarP(&hosts, "domain", "d", nil, "host names under which it answers; may be repeated or joined with commas")
	fs.StringVar(&auth, "auth", "public", "how clients prove who they are")
	secretFlag(fs, &secrets)
	fs.StringVar(&timeout, "timeout", "", "longest time of one call, such as 10s; a number without a unit is milliseconds")
	fs.BoolVar(&httpsOnly, "https-only", false, "refuse requests that did not come by HTTPS")
	fs.BoolVar(&cors, "cors", false, "let pages of all origins ask")
	fs.BoolVar(&async, "async", false, "answer at once; the call is a job")
	fs.BoolVar(&disable, "disable", false, "do not answer yet")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(paths) > 1 {
			return usagef("an endpoint has one path; print one for each")
		}
		path := "/" + args[0]
		if len(paths) == 1 {
			path = paths[0]
		}
		a, err := authOf(auth)
		if err != nil {
			return err
		}
		for i := range methods {
			methods[i] = strings.ToUpper(methods[i])
		}
		spec := fields{{"path", path}}.with("methods", methods).with("hosts", hosts).with("function", args[1]).with("secrets", secrets).
			with("timeout", duration(timeout)).with("async", async).with("auth", a).with("cors", cors).with("httpsOnly", httpsOnly)
		if disable {
			spec = append(spec, field{"enabled", false})
		}
		return n.made(e, specs.KindEndpoint, args[0], spec)
	}
	return cmd
}

// authOf reads --auth; nil is for everybody.
func authOf(s string) (any, error) {
	way, rest, _ := strings.Cut(s, "=")
	before, ref, two := strings.Cut(rest, ":")
	if !two {
		before, ref = "", rest
	}
	secret, key, keyed := strings.Cut(ref, "/")
	value := fields{{"name", secret}, {"key", key}}
	switch {
	case s == "public":
		return nil, nil
	case way == "bearer" && keyed && !two:
		return fields{{"bearer", value}}, nil
	case way == "basic" && keyed && two:
		return fields{{"basic", fields{{"username", before}, {"password", value}}}}, nil
	case way == "hmac" && keyed && two:
		return fields{{"hmac", fields{{"header", before}, {"secret", value}}}}, nil
	case way == "apiKeys" && !keyed && two:
		return fields{{"apiKeys", fields{{"header", before}, {"secret", secret}}}}, nil
	}
	return nil, usagef("--auth %q is none of public, bearer=SECRET/KEY, basic=USER:SECRET/KEY, hmac=HEADER:SECRET/KEY, apiKeys=HEADER:SECRET", s)
}

func (e *env) newSourceVerb(n *newResource) *cobra.Command {
	var name, event string
	var set, secrets []string
	cmd := &cobra.Command{
		Use:   "source TYPE",
		Short: "An EventSource with one event",
		Long: `Makes an EventSource with one event of a source type. --set KEY=VALUE gives a key
of the type, a key below another as a.b=VALUE; VALUE is JSON where it can be, else
text; a key alone is true. With another TYPE than those there are, it is a driver
of that DriverType, and --set gives its settings.`,
		Example: `  engine new source webhook --name shop --event orders --set path=/orders --set methods='["POST"]'
  engine new source ticker --name clock --set every=5s
  engine new source vcenter --name my-vcenter --set vcenterurl=https://vc.example.com --secret vcenter`,
		Args: cobra.ExactArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "name of the EventSource; default: the type")
	fs.StringVar(&event, "event", "", "name of the event; default: the type")
	fs.StringArrayVarP(&set, "set", "s", nil, "KEY=VALUE; may be repeated")
	secretFlag(fs, &secrets)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		typ := args[0]
		if name == "" {
			name = nameOf(typ)
		}
		if event == "" {
			event = nameOf(typ)
		}
		var config fields
		if catalog().Sources.Lookup(typ) == nil {
			settings, err := settingsOf(set, true)
			if err != nil {
				return err
			}
			config, typ = fields{{"type", typ}}.with("set", settings).with("secrets", secrets), "driver"
		} else {
			var err error
			if config, err = settingsOf(set, false); err != nil {
				return err
			}
			config = config.with("secrets", secrets)
		}
		if config == nil {
			config = fields{}
		}
		return n.made(e, specs.KindEventSource, name, fields{{typ, fields{{event, config}}}})
	}
	return cmd
}

// settingsOf reads --set. Flat settings are those of a driver: text, and keys
// as they are.
func settingsOf(set []string, flat bool) (fields, error) {
	var out fields
	for _, s := range set {
		key, v, has := strings.Cut(s, "=")
		if key == "" {
			return nil, usagef("--set %q is not KEY=VALUE", s)
		}
		var value any = v
		switch {
		case !has && flat:
			value = nil
		case !has:
			value = true
		case !flat && bus.ValidJSON([]byte(v)):
			value = json.RawMessage(v)
		}
		path := []string{key}
		if !flat {
			path = strings.Split(key, ".")
		}
		var err error
		if out, err = out.set(path, value); err != nil {
			return nil, usagef("--set %s: %v", s, err)
		}
	}
	return out, nil
}

// set gives the key at a path a value.
func (f fields) set(path []string, value any) (fields, error) {
	i := slices.IndexFunc(f, func(m field) bool { return m.name == path[0] })
	if len(path) == 1 {
		if i >= 0 {
			return nil, fmt.Errorf("%s is given twice", path[0])
		}
		return append(f, field{path[0], value}), nil
	}
	if i < 0 {
		f, i = append(f, field{path[0], fields{}}), len(f)
	}
	inner, ok := f[i].value.(fields)
	if !ok {
		return nil, fmt.Errorf("%s has a value of its own", path[0])
	}
	inner, err := inner.set(path[1:], value)
	f[i].value = inner
	return f, err
}

func (e *env) newSensorVerb(n *newResource) *cobra.Command {
	var on, secrets []string
	var function, message, when, correlate, within, condition, input string
	var d deliveryFlags
	cmd := &cobra.Command{
		Use:   "sensor NAME --on EVENT",
		Short: "A Sensor with one trigger",
		Long: `Makes a Sensor that waits for events and calls a function, or writes to the log.
--on names an event as SOURCE/EVENT, or by its CloudEvents type; NAME=… before it is
how expressions know it, default the event's name. Repeated, it waits for all.`,
		Example: `  engine new sensor large-orders --on order=shop/orders --when 'data.total > 100' --function ship
  engine new sensor paid --on shop/orders --on shop/payments --correlate data.orderId --within 10m --log paid`,
		Args: cobra.ExactArgs(1),
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&on, "on", nil, "an event; may be repeated")
	fs.StringVar(&when, "when", "", "expression over the (first) event that must be true")
	fs.StringVar(&correlate, "correlate", "", "expression whose value pairs events")
	fs.StringVar(&within, "within", "", "how long an event waits for the others")
	fs.StringVar(&condition, "condition", "", "expression over the names of the events; default: all of them")
	fs.StringVar(&function, "function", "", "name of the Function to call")
	fs.StringVar(&message, "log", "", "message to write to the log, instead of a function")
	fs.StringVar(&input, "input", "", "what the function gets instead of the event's data, as JSON")
	secretFlag(fs, &secrets)
	d.add(fs)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(on) == 0 {
			return usagef("--on is missing")
		}
		if (function == "") == (message == "") {
			return usagef("give one of --function and --log")
		}
		deps := make([]fields, len(on))
		for i, s := range on {
			name, what, named := strings.Cut(s, "=")
			if !named {
				what = s
			}
			source, event, placed := strings.Cut(what, "/")
			dep := fields{{"type", what}}
			if placed {
				dep = fields{{"source", source}, {"event", event}}
				if !named {
					name = nameOf(event)
				}
			} else if !named {
				name = nameOf(what)
			}
			deps[i] = append(fields{{"name", name}}, dep...)
		}
		deps[0] = deps[0].with("when", when)
		in, err := jsonFlag("--input", input)
		if err != nil {
			return err
		}
		trigger := fields{{"name", "call"}}.with("function", function)
		if message != "" {
			trigger = trigger.with("log", fields{{"message", message}})
		}
		trigger = d.spec(trigger.with("input", in).with("secrets", secrets))
		return n.made(e, specs.KindSensor, args[0], fields{{"dependencies", deps}}.with("correlate", correlate).with("within", duration(within)).
			with("condition", condition).with("triggers", []fields{trigger}))
	}
	return cmd
}
