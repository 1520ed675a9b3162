package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The exit codes.
const (
	exitOK          = 0
	exitFailure     = 1 // it failed, or findings: specs with errors, a refused reload
	exitUsage       = 2 // wrong arguments, flags or variables
	exitUnreachable = 3 // no engine answers
)

// env is what a verb has of the world outside, so that tests need no process.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookup         func(string) (string, bool) // environment variables
	version        string
	// exit ends the process at once, for the second signal.
	exit func(code int)
}

// codeError is an error with an exit code other than 1. A nil err has been
// told already.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// errFindings ends a verb with exit code 1 after it has told why.
var errFindings = &codeError{code: exitFailure}

// ranError marks an error that a verb returned; all others are cobra's, about
// the usage.
type ranError struct{ error }

func (e ranError) Unwrap() error { return e.error }

// execute runs the command line and returns the exit code.
func execute(ctx context.Context, e *env, args []string) int {
	root := e.root() //nolint:contextcheck // verbs take it from their command
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var coded *codeError
	var ran ranError
	code := exitFailure
	switch {
	case errors.As(err, &coded):
		code = coded.code
	case !errors.As(err, &ran):
		code = exitUsage
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(e.stderr, "engine: "+strings.TrimSpace(text))
	}
	if code == exitUsage {
		fmt.Fprintf(e.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

// root is the whole command tree.
func (e *env) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "engine",
		Short: "Event-driven automation from a directory of YAML",
		Long: `engine turns a directory of YAML files into running automation: event sources
put events into a durable log, sensors decide, triggers call functions.

Exit codes: 0 success; 1 failure, or findings such as specs with errors;
2 wrong usage; 3 no engine can be reached.`,
		SilenceErrors:         true,
		SilenceUsage:          true,
		DisableFlagsInUseLine: true,
		Args:                  cobra.NoArgs,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(e.verbs()...)
	root.InitDefaultCompletionCmd()
	finish(e, root)
	return root
}

// verbs is the table of the verbs, one file each.
func (e *env) verbs() []*cobra.Command {
	return []*cobra.Command{
		e.runVerb(), e.validateVerb(), e.testVerb(), e.initVerb(), e.newVerb(), e.schemaVerb(), e.functionsVerb(),
		e.getVerb(), e.describeVerb(), e.eventsVerb(), e.emitVerb(), e.explainVerb(), e.replayVerb(), e.execVerb(), e.runsVerb(), e.dlqVerb(),
		e.pauseVerb(), e.resumeVerb(), e.reloadVerb(),
		e.versionVerb(), e.docsVerb(),
	}
}

// group makes a command that only has verbs below it.
func group(cmd *cobra.Command, verbs ...*cobra.Command) *cobra.Command {
	names := make([]string, len(verbs))
	for i, v := range verbs {
		names[i] = v.Name()
	}
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown verb %q; there are %s", args[0], strings.Join(names, ", "))
		}
		return usagef("a verb is missing: %s", strings.Join(names, ", "))
	}
	cmd.AddCommand(verbs...)
	return cmd
}

// finish gives every flag below cmd its environment variable and marks the
// errors of verbs.
func finish(e *env, cmd *cobra.Command) {
	cmd.Flags().SortFlags = false
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		f.Usage += " [$" + variable(cmd, f) + "]"
	})
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(e, cmd); err != nil {
				return err
			}
			if err := run(cmd, args); err != nil {
				return ranError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		finish(e, sub)
	}
}

// shared marks flags that mean the same everywhere: their variable has no verb
// in its name.
const shared = "shared"

// variable is the environment variable of a flag: ENGINE_LISTEN, or with the
// verb in its name when the flag belongs to one client verb alone.
func variable(cmd *cobra.Command, f *pflag.Flag) string {
	name := f.Name
	if f.Annotations[shared] == nil {
		name = strings.TrimPrefix(cmd.CommandPath(), "engine ") + " " + name
	}
	return "ENGINE_" + strings.ToUpper(strings.NewReplacer("-", "_", " ", "_").Replace(name))
}

// share marks all flags in fs as shared.
func share(fs *pflag.FlagSet) {
	fs.VisitAll(func(f *pflag.Flag) { _ = fs.SetAnnotation(f.Name, shared, []string{"true"}) })
}

// fromEnvironment sets the flags that were not given from their variables.
func fromEnvironment(e *env, cmd *cobra.Command) (err error) {
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil || f.Name == "help" {
			return
		}
		name := variable(cmd, f)
		v, ok := e.lookup(name)
		if !ok || v == "" {
			return
		}
		if serr := f.Value.Set(v); serr != nil {
			err = usagef("environment variable %s=%q: %v", name, v, serr)
			return
		}
		f.Changed = true
	})
	return err
}
