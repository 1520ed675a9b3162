package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/specs"
)

// findings is what validate prints for programs.
type findings struct {
	Valid       bool              `json:"valid"`
	Resources   int               `json:"resources"`
	Files       int               `json:"files"`
	Errors      int               `json:"errors"`
	Warnings    int               `json:"warnings"`
	Diagnostics specs.Diagnostics `json:"diagnostics"`
}

func (e *env) validateVerb() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "validate PATH…",
		Short: "Check specs without running them",
		Long: `Checks files and directories as the engine does before it runs them, and prints
all problems on standard error, one a line: file:line:col: error[code] path:
what is wrong (hint). Exits with 1 when there are errors; warnings do not count.`,
		Example: "  engine validate specs/\n  engine validate specs/ -o json | jq '.diagnostics[].code'",
		Args:    cobra.MinimumNArgs(1),
	}
	e.output(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, paths []string) error {
		if err := readable(paths); err != nil {
			return err
		}
		found, err := check(cmd.Context(), paths)
		if err != nil {
			return err
		}
		p := &printer{w: e.stdout, output: output}
		if !p.text() {
			err = p.value(found)
		} else {
			err = e.printFindings(found)
		}
		if err == nil && !found.Valid {
			return errFindings
		}
		return err
	}
	return cmd
}

// check loads and checks specs.
func check(ctx context.Context, paths []string) (findings, error) {
	cat := catalog()
	l, err := cat.Loader().Load(ctx, paths...)
	if err != nil {
		return findings{}, err
	}
	ds := append(specs.Diagnostics{}, l.Diagnostics...)
	compiler := engine.NewCompiler(cat)
	compiler.MaxEvent = maxPayload - payloadHeadroom // of the largest bus there can be
	ds = append(ds, compiler.Check(l.Set(), l.Invalid...)...).Sort()
	tests, err := cat.Loader().LoadTests(ctx, testPaths(paths)...)
	if err != nil {
		return findings{}, err
	}
	ds = append(ds, tests.Diagnostics...).Sort()
	out := findings{Valid: !ds.HasErrors(), Resources: len(l.Resources), Files: len(l.Files), Diagnostics: ds}
	for _, d := range ds {
		if d.Severity == specs.Error {
			out.Errors++
		} else {
			out.Warnings++
		}
	}
	return out, nil
}

// testPaths are the paths where spec tests may be.
func testPaths(paths []string) (out []string) {
	for _, p := range paths {
		if info, err := os.Stat(p); err == nil && info.IsDir() {
			out = append(out, p)
		}
	}
	return out
}

func (e *env) printFindings(f findings) error {
	for _, d := range f.Diagnostics {
		if _, err := fmt.Fprintln(e.stderr, d.String()); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("%s in %s", plural(f.Resources, "valid resource"), plural(f.Files, "file"))
	if len(f.Diagnostics) > 0 {
		what = fmt.Sprintf("%s, %s; %s", plural(f.Errors, "error"), plural(f.Warnings, "warning"), what)
	}
	_, err := fmt.Fprintln(e.stdout, what)
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
