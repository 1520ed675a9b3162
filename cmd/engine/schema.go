package main

import (
	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/specs"
)

func (e *env) schemaVerb() *cobra.Command {
	kind := "spec"
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of specs, for editors",
		Long: `Prints the JSON Schema of the documents the engine reads, or of spec tests. Editors with a YAML
language server complete and check a file that begins with

  # yaml-language-server: $schema=PATH-OR-URL`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().Var(&choiceFlag{&kind, []string{"spec", "test"}}, "kind", "of which files: spec, or test for spec tests (*_test.yaml)")
	cmd.RunE = func(*cobra.Command, []string) error {
		b, err := specs.Schema(catalog().Types())
		if kind == "test" {
			b, err = specs.TestSchema()
		}
		if err == nil {
			_, err = e.stdout.Write(b)
		}
		return err
	}
	return cmd
}
