package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// functionKind is one kind of functions, for machines.
type functionKind struct {
	Kind    string         `json:"kind"`
	Doc     string         `json:"doc"`
	Options []specs.Option `json:"options"`
	Example string         `json:"example"`
}

func (e *env) functionsVerb() *cobra.Command {
	var output string
	kinds := catalog().Functions
	names := make([]string, len(kinds))
	for i := range kinds {
		names[i] = kinds[i].Name
	}
	cmd := &cobra.Command{
		Use:   "functions [KIND]",
		Short: "List the kinds of functions and their options",
		Long: `Lists what a trigger can call, inline or as a Function, with the keys of each kind and
their types. With a KIND it tells what its keys mean and shows an example. What all
kinds have in common is in docs/functions.md.`,
		Example:   "  engine functions\n  engine functions http\n  engine functions -o json | jq -r .[].kind",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: names,
	}
	e.output(cmd, &output)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		p := &printer{w: e.stdout, output: output}
		if len(args) == 0 {
			if p.text() {
				return listKinds(e.stdout, kinds)
			}
			all := make([]functionKind, len(kinds))
			for i := range kinds {
				all[i] = describeKind(&kinds[i])
			}
			return p.value(all)
		}
		f := kinds.Lookup(args[0])
		if f == nil {
			return usagef("there is no kind %q; there are %s", args[0], strings.Join(names, ", "))
		}
		k := describeKind(f)
		if !p.text() {
			return p.value(k)
		}
		return showKind(e.stdout, &k)
	}
	return cmd
}

func describeKind(f *triggers.Factory) functionKind {
	example := f.Example
	if line, rest, ok := strings.Cut(example, "\n"); ok && strings.HasPrefix(line, "# yaml-language-server:") {
		example = rest // its path is that of the repository
	}
	return functionKind{Kind: f.Name, Doc: f.Doc, Options: specs.Options(f.New()), Example: example}
}

// listKinds prints a table for each kind.
func listKinds(w io.Writer, kinds triggers.Registry) error {
	s := sections{w: w}
	for i := range kinds {
		k := describeKind(&kinds[i])
		if i > 0 {
			_, _ = fmt.Fprintln(w) // an error comes again
		}
		_, _ = fmt.Fprintln(w, wrap(k.Kind+": "+k.Doc, 0))
		s.add("", func(t *table) {
			for _, o := range k.Options {
				t.row("  "+o.Path, optionType(&o))
			}
		})
	}
	return s.err
}

// showKind prints everything about one kind.
func showKind(w io.Writer, k *functionKind) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\nOptions:\n", wrap(k.Kind+": "+k.Doc, 0))
	for _, o := range k.Options {
		fmt.Fprintf(&b, "  %s: %s\n%s\n", o.Path, optionType(&o), wrap(o.Doc, 6))
		if o.Example != "" {
			fmt.Fprintf(&b, "      Example: %s\n", o.Example)
		}
	}
	b.WriteString("\nExample:\n")
	for line := range strings.Lines(k.Example) {
		if line != "\n" {
			b.WriteString("  ")
		}
		b.WriteString(line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// optionType is the type of an option with what limits it.
func optionType(o *specs.Option) string {
	s := o.Type
	if o.Enum != nil {
		s = strings.Join(o.Enum, ", ")
	}
	switch {
	case o.Min != "" && o.Max != "":
		s += ", " + o.Min + " to " + o.Max
	case o.Min != "":
		s += ", at least " + o.Min
	}
	if o.Required {
		s += ", required"
	}
	return s
}

// wrap breaks a text into lines of at most 100 characters, indented.
func wrap(s string, indent int) string {
	const width = 100
	var b strings.Builder
	column := 0
	for word := range strings.FieldsSeq(s) {
		n := len([]rune(word))
		switch {
		case column == 0:
			b.WriteString(strings.Repeat(" ", indent))
			column = indent
		case column+1+n > width:
			b.WriteString("\n" + strings.Repeat(" ", indent))
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	return b.String()
}
