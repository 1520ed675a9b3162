package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func (e *env) versionVerb() *cobra.Command {
	var output string
	cmd := &cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs}
	e.output(cmd, &output)
	cmd.RunE = func(*cobra.Command, []string) error {
		p := &printer{w: e.stdout, output: output}
		if !p.text() {
			return p.value(map[string]string{"version": e.version, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
		}
		_, err := fmt.Fprintf(e.stdout, "engine %s (%s, %s/%s)\n", e.version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	}
	return cmd
}
