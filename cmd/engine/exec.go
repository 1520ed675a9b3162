package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/api"
	"github.com/sensor-engine/engine/engine/jobs"
	"github.com/sensor-engine/engine/engine/secrets"
)

// execFlags are what `engine exec` is told.
type execFlags struct {
	input       string
	secrets     []string
	timeout     durationFlag
	async, fail bool
	local       string
}

func (e *env) execVerb() *cobra.Command {
	f := &execFlags{}
	cmd := &cobra.Command{
		Use:   "exec FUNCTION",
		Short: "Call a function",
		Long: `Calls a Function and prints what it gave: its logs, its error if there is one,
and its output as the payload. It is called at once and once; with --async the
call is a durable job, which is repeated by the function's policy, and its id is
printed. Either leaves a run in the history.

Without --input, the input is read from standard input unless that is a terminal
or empty; then it is {}.

With --local no engine is needed: the function is made from the specs there,
called, and ended. Events that it emits are printed and stored nowhere.

A call that failed ends with 0 like one that succeeded, unless --fail is given.`,
		Example: `  engine exec hello --input '{"name": "Jon", "place": "Winterfell"}'
  engine exec resize --input @request.json --secret images --fail
  echo '{"name": "Jon"}' | engine exec hello --local specs/`,
		Args: cobra.ExactArgs(1),
	}
	fs := cmd.Flags()
	fs.StringVarP(&f.input, "input", "i", "", "the input as JSON; @FILE reads a file, - standard input")
	fs.StringSliceVar(&f.secrets, "secret", nil, "name of a Secret whose values the function gets, too; may be repeated")
	fs.Var(&f.timeout, "timeout", "longest time the call may take; default: that of the function")
	fs.BoolVar(&f.async, "async", false, "store the call as a job and print its id")
	fs.BoolVar(&f.fail, "fail", false, "end with 1 when the call failed")
	fs.StringVar(&f.local, "local", "", "file or directory of specs to take the function from, instead of a running engine")
	c := e.client(cmd)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.completeRefs(cmd, append([]string{"function"}, args...), word)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.local != "" && f.async {
			return usagef("--async needs a running engine, so it cannot be used with --local")
		}
		input, err := e.execInput(f.input, cmd.Flags().Changed("input"))
		if err != nil {
			return err
		}
		if f.local != "" {
			return e.execLocal(cmd.Context(), c, f, args[0], input)
		}
		return e.execRemote(cmd.Context(), c, f, args[0], input)
	}
	return cmd
}

// execInput is the input of a call.
func (e *env) execInput(flag string, given bool) (json.RawMessage, error) {
	var input []byte
	var err error
	switch {
	case given:
		if input, err = e.payload("--input", flag); err != nil {
			return nil, err
		}
	case !terminal(e.stdin):
		if input, err = io.ReadAll(e.stdin); err != nil {
			return nil, fmt.Errorf("standard input: %w", err)
		}
	}
	if len(bytes.TrimSpace(input)) == 0 {
		return json.RawMessage("{}"), nil
	}
	if !bus.ValidJSON(input) {
		return nil, usagef(`the input is not JSON; text is written "in quotes", which a shell wants in others: --input '"text"'`)
	}
	return input, nil
}

// terminal reports whether nobody has put anything into standard input.
func terminal(r io.Reader) bool {
	file, ok := r.(*os.File)
	if !ok {
		return r == nil
	}
	info, err := file.Stat()
	return err != nil || info.Mode()&os.ModeCharDevice != 0
}

// execRemote has a running engine call.
func (e *env) execRemote(ctx context.Context, c *client, f *execFlags, function string, input json.RawMessage) error {
	ask := api.Exec{Function: function, Input: input, Secrets: f.secrets, Async: f.async}
	if f.timeout > 0 {
		ask.Timeout = f.timeout.String()
	}
	var body bytes.Buffer
	if err := plainJSON(&body, ask); err != nil {
		return err
	}
	resp, err := c.open(ctx, http.MethodPost, "/runs", nil, &body, http.Header{"Content-Type": {"application/json"}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return unreachable("the engine is gone: %w", err)
	}
	p := c.printer()
	if f.async {
		var sub struct{ ID string }
		if err := json.Unmarshal(b, &sub); err != nil {
			return errors.Join(errors.New("the engine's answer is not understood"), err)
		}
		if p.text() {
			_, err = fmt.Fprintln(e.stdout, sub.ID)
			return err
		}
		return p.value(json.RawMessage(b))
	}
	var done api.Executed
	if err := json.Unmarshal(b, &done); err != nil {
		return errors.Join(errors.New("the engine's answer is not understood"), err)
	}
	return e.executed(p, f, &done)
}

// executed prints what a call gave: the answer, or all there is to say of it.
func (e *env) executed(p *printer, f *execFlags, done *api.Executed) error {
	var err error
	if p.text() {
		err = plainJSON(e.stdout, done.Answer)
	} else {
		err = p.value(done)
	}
	if err == nil && f.fail && done.Context.Error != nil {
		return errFindings
	}
	return err
}

// plainJSON writes JSON with < > & as they are.
func plainJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// execLocal calls without an engine.
func (e *env) execLocal(ctx context.Context, c *client, f *execFlags, function string, input json.RawMessage) error {
	if err := readable([]string{f.local}); err != nil {
		return err
	}
	masker := &secrets.Masker{}
	cat := catalog()
	loaded, err := cat.Loader().Load(ctx, f.local)
	if err != nil {
		return err
	}
	local := engine.Local{
		Catalog: cat, LookupEnv: e.lookup, Masker: masker, Data: filepath.Join(c.data, "functions"),
		Logger: slog.New(slog.NewTextHandler(masker.Writer(e.stderr), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	out, emitted, found, err := local.Call(ctx, loaded, function, jobs.Request{Input: input, Grants: f.secrets, Timeout: time.Duration(f.timeout)})
	for _, d := range found {
		_, _ = fmt.Fprintln(e.stderr, clean(d.String()))
	}
	if err != nil {
		return masker.MaskError(err)
	}
	for _, ev := range emitted {
		_, _ = fmt.Fprintln(e.stderr, "emitted: "+clean(string(masker.Mask(api.EncodeEvent(ev)))))
	}
	done := api.ExecutedOf(out)
	return e.executed(c.printer(), f, &done)
}
