package main

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine/api"
)

func (e *env) reloadVerb() *cobra.Command {
	var prune bool
	cmd := &cobra.Command{
		Use:   "reload",
		Short: "Read the specs again, now",
		Long: `Makes the engine read its files now and tells what followed. It does so by
itself when a file changes; this waits for the result. Exits with 1 when a part
of the files is refused: its last good version runs on, where there is one.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&prune, "prune", false, "remove at once what is no longer in the files, also what a guard against accidents holds back")
	c := e.client(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		q := queryOf()
		if prune {
			q.Set("prune", "true")
		}
		var done api.Reload
		if err := c.ask(cmd.Context(), http.MethodPost, "/reload", q, &done); err != nil {
			return err
		}
		p := c.printer()
		if !p.text() {
			if err := p.value(done); err != nil {
				return err
			}
		} else {
			for _, d := range done.Diagnostics {
				if _, err := fmt.Fprintln(e.stderr, d.String()); err != nil {
					return err
				}
			}
			if _, err := fmt.Fprintln(e.stdout, done.Summary); err != nil {
				return err
			}
			for _, st := range done.Statuses {
				if _, err := fmt.Fprintln(e.stdout, "! "+st.String()); err != nil {
					return err
				}
			}
		}
		if done.Refused {
			return errFindings
		}
		return nil
	}
	return cmd
}
