package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/spectest"
	"github.com/sensor-engine/engine/specs"
)

// testReport is what test prints for programs.
type testReport struct {
	Passed      int               `json:"passed"`
	Failed      int               `json:"failed"`
	Tests       []testOutcome     `json:"tests"`
	Diagnostics specs.Diagnostics `json:"diagnostics"`
}

type testOutcome struct {
	Pos      specs.Pos     `json:"pos"`
	Name     string        `json:"name"`
	Passed   bool          `json:"passed"`
	Failures []testFailure `json:"failures,omitempty"`
	Firings  []testFiring  `json:"firings"`
}

type testFailure struct {
	Pos     specs.Pos `json:"pos"`
	Message string    `json:"message"`
	Diff    []string  `json:"diff,omitempty"`
}

// testFiring has the form of an expectation.
type testFiring struct {
	Sensor   string `json:"sensor"`
	Trigger  string `json:"trigger"`
	At       string `json:"at"`
	Key      any    `json:"key,omitempty"`
	Function string `json:"function"`
	Input    any    `json:"input,omitempty"`
	Config   any    `json:"config,omitempty"`
	Error    string `json:"error,omitempty"`
}

func (r *testReport) ok() bool { return r.Failed == 0 && !r.Diagnostics.HasErrors() }

func (e *env) testVerb() *cobra.Command {
	var output, run, junit string
	var verbose bool
	cmd := &cobra.Command{
		Use:   "test [PATH…]",
		Short: "Run the spec tests beside the specs",
		Long: `Runs the tests in files *_test.yaml: given events at given times, in virtual time,
they say what fires. The specs are checked and evaluated as the engine does it;
nothing is stored and no function is called. PATH is a file or directory,
default: the current one. Exits with 1 when a test fails or a file has errors.`,
		Example: "  engine test specs/\n  engine test -v --run 'paid' specs/orders_test.yaml\n  engine test --junit report.xml specs/",
	}
	e.output(cmd, &output)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "list the tests that pass, too")
	cmd.Flags().StringVar(&run, "run", "", "run only tests whose name matches this regular expression")
	cmd.Flags().StringVar(&junit, "junit", "", "write the results to this file as JUnit XML, too")
	cmd.RunE = func(cmd *cobra.Command, paths []string) error {
		pattern, err := regexp.Compile(run)
		if err != nil {
			return usagef("--run: %v", err)
		}
		if len(paths) == 0 {
			paths = []string{"."}
		}
		if err := readable(paths); err != nil {
			return err
		}
		report, err := runTests(cmd.Context(), paths, pattern)
		if err != nil {
			return err
		}
		if junit != "" {
			if err := writeJUnit(junit, report); err != nil {
				return fmt.Errorf("--junit: %w", err)
			}
		}
		p := &printer{w: e.stdout, output: output}
		if p.text() {
			err = e.printTests(report, verbose, paths)
		} else {
			err = p.value(report)
		}
		if err == nil && !report.ok() {
			return errFindings
		}
		return err
	}
	return cmd
}

// runTests loads and runs the tests below paths whose names match.
func runTests(ctx context.Context, paths []string, pattern *regexp.Regexp) (*testReport, error) {
	cat := catalog()
	l, err := cat.Loader().LoadTests(ctx, paths...)
	if err != nil {
		return nil, err
	}
	report := &testReport{Tests: []testOutcome{}, Diagnostics: append(specs.Diagnostics{}, l.Diagnostics...)}
	runners := map[string]*spectest.Runner{} // by the specs under test; nil for those with errors
	for i := range l.Files {
		file := &l.Files[i]
		if !slices.ContainsFunc(file.Tests, func(t specs.Test) bool { return pattern.MatchString(t.Name) }) {
			continue
		}
		under := underTest(file)
		id := strings.Join(under, "\x00")
		runner, known := runners[id]
		if !known {
			var found specs.Diagnostics
			if runner, found, err = newRunner(ctx, cat, under); err != nil {
				return nil, err
			}
			runners[id] = runner
			report.Diagnostics = append(report.Diagnostics, found...)
		}
		for j := range file.Tests {
			t := &file.Tests[j]
			if !pattern.MatchString(t.Name) {
				continue
			}
			out := testOutcome{Pos: t.Pos, Name: t.Name, Firings: []testFiring{}}
			if runner == nil {
				out.Failures = []testFailure{{Pos: file.Pos, Message: "the specs have errors: " + strings.Join(under, ", ")}}
			} else {
				runTest(runner, t, &out)
			}
			if out.Passed = len(out.Failures) == 0; out.Passed {
				report.Passed++
			} else {
				report.Failed++
			}
			report.Tests = append(report.Tests, out)
		}
	}
	report.Diagnostics = report.Diagnostics.Sort()
	return report, nil
}

// underTest are the paths of the specs that a file is about.
func underTest(f *specs.TestFile) []string {
	dir := filepath.Dir(f.Pos.File)
	if len(f.Specs) == 0 {
		return []string{dir}
	}
	out := make([]string, len(f.Specs))
	for i, p := range f.Specs {
		if out[i] = p; !filepath.IsAbs(p) {
			out[i] = filepath.Join(dir, p)
		}
	}
	return out
}

// newRunner loads, checks and compiles specs. Without a runner the errors say
// why.
func newRunner(ctx context.Context, cat engine.Catalog, paths []string) (*spectest.Runner, specs.Diagnostics, error) {
	l, err := cat.Loader().Load(ctx, paths...)
	if err != nil {
		return nil, nil, err
	}
	set, compiler := l.Set(), engine.NewCompiler(cat)
	found := append(slices.Clone(l.Diagnostics), compiler.Check(set, l.Invalid...)...)
	found = slices.DeleteFunc(found, func(d specs.Diagnostic) bool { return d.Severity != specs.Error })
	if len(found) > 0 {
		return nil, found, nil
	}
	return spectest.New(set, compiler.Sensors(set), cat.Sources), nil, nil
}

func runTest(r *spectest.Runner, t *specs.Test, out *testOutcome) {
	if found := r.Check(t); len(found) > 0 {
		for _, d := range found {
			out.Failures = append(out.Failures, testFailure{Pos: d.Pos, Message: d.Message})
		}
		return
	}
	res, err := r.Run(t)
	if err != nil {
		out.Failures = []testFailure{{Pos: t.Pos, Message: err.Error()}}
		return
	}
	for _, f := range res.Failures {
		out.Failures = append(out.Failures, testFailure(f))
	}
	for _, f := range res.Firings {
		at := durationFlag(f.At)
		out.Firings = append(out.Firings, testFiring{f.Sensor, f.Trigger, at.String(), f.Key, f.Function, f.Input, f.Config, f.Error})
	}
}

// lines are those of what failed, without indentation.
func (o *testOutcome) lines() (out []string) {
	for _, f := range o.Failures {
		what := f.Pos.String() + ": " + f.Message
		if len(f.Diff) > 0 {
			what += " (- expected, + actual)"
		}
		out = append(out, what)
		for _, l := range f.Diff {
			out = append(out, "  "+clean(l))
		}
	}
	return out
}

func (e *env) printTests(r *testReport, verbose bool, paths []string) error {
	for _, d := range r.Diagnostics {
		if _, err := fmt.Fprintln(e.stderr, d.String()); err != nil {
			return err
		}
	}
	var b strings.Builder
	files := map[string]bool{}
	for i := range r.Tests {
		t := &r.Tests[i]
		files[t.Pos.File] = true
		switch {
		case !t.Passed:
			fmt.Fprintf(&b, "FAIL  %s: %s\n", t.Pos, clean(t.Name))
			for _, l := range t.lines() {
				fmt.Fprintf(&b, "      %s\n", l)
			}
		case verbose:
			fmt.Fprintf(&b, "ok    %s: %s\n", t.Pos, clean(t.Name))
		}
	}
	switch {
	case r.Failed > 0:
		fmt.Fprintf(&b, "%d of %s failed\n", r.Failed, plural(len(r.Tests), "test"))
	case len(r.Tests) > 0:
		fmt.Fprintf(&b, "%s in %s passed\n", plural(len(r.Tests), "test"), plural(len(files), "file"))
	case r.ok():
		fmt.Fprintf(&b, "no tests in %s: they are in files whose names end in _test.yaml\n", strings.Join(paths, ", "))
	}
	_, err := io.WriteString(e.stdout, b.String())
	return err
}

// junitSuites is the root of a JUnit report.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

// junitSuite is one file.
type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	File    string        `xml:"file,attr"`
	Line    int           `xml:"line,attr,omitempty"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Error   *junitMessage `xml:"error,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// writeJUnit writes a report: a suite for each file, and an error for each
// problem of a file.
func writeJUnit(name string, r *testReport) error {
	out := junitSuites{}
	add := func(c junitCase) {
		i := slices.IndexFunc(out.Suites, func(s junitSuite) bool { return s.Name == c.File })
		if i < 0 {
			i, out.Suites = len(out.Suites), append(out.Suites, junitSuite{Name: c.File})
		}
		s := &out.Suites[i]
		s.Cases, s.Tests, out.Tests = append(s.Cases, c), s.Tests+1, out.Tests+1
		if c.Failure != nil {
			s.Failures, out.Failures = s.Failures+1, out.Failures+1
		}
		if c.Error != nil {
			s.Errors, out.Errors = s.Errors+1, out.Errors+1
		}
	}
	for _, d := range r.Diagnostics {
		add(junitCase{Class: d.Pos.File, Name: string(d.Code), File: d.Pos.File, Line: d.Pos.Line, Error: &junitMessage{d.Message, d.String()}})
	}
	for i := range r.Tests {
		t := &r.Tests[i]
		c := junitCase{Class: t.Pos.File, Name: t.Name, File: t.Pos.File, Line: t.Pos.Line}
		if !t.Passed {
			c.Failure = &junitMessage{t.Failures[0].Message, strings.Join(t.lines(), "\n")}
		}
		add(c)
	}
	b, err := xml.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append([]byte(xml.Header), append(b, '\n')...), 0o644) //nolint:gosec // a report for other programs
}
