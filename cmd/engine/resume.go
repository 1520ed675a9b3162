package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/engine/api"
)

func (e *env) resumeVerb() *cobra.Command {
	var skip bool
	cmd := &cobra.Command{
		Use:   "resume SENSOR",
		Short: "Let a paused sensor go on",
		Long: `Lets a sensor that is paused, by somebody or by the watchdog, catch up from its
place in the log: it evaluates everything that was stored since then, in its
order and with the time at which it was stored, beside the others, until it has
met them.

With --skip it goes on with the next event instead. What waits in it goes on
waiting; deadlines that have passed meanwhile count as if nothing had come.`,
		Example: "  engine resume ship-paid-orders\n  engine resume ship-paid-orders --skip",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&skip, "skip", false, "leave out what was stored since the pause")
	c := e.client(cmd)
	cmd.ValidArgsFunction = c.completeSensors
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q := queryOf()
		if skip {
			q.Set("skip", "true")
		}
		return c.steer(cmd.Context(), args[0], "resume", q, func(p *api.Paused) string {
			switch {
			case skip:
				return fmt.Sprintf("resumed, %d events skipped", p.Skipped)
			case p.Behind == nil:
				return "resumed"
			}
			return "resumed " + place(p.Behind)
		})
	}
	return cmd
}
