package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docsVerb prints docs/cli.md.
func (e *env) docsVerb() *cobra.Command {
	return &cobra.Command{
		Use:    "docs",
		Short:  "Print the reference of the command line as Markdown",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := io.WriteString(e.stdout, reference(e))
			return err
		},
	}
}

// reference is the reference of all verbs.
func reference(e *env) string {
	root := e.root()
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Command line

Made by `+"`make gen`"+` from the program; do not edit.

%s

The verbs that ask a running engine find it by `+"`--api`"+`, or else in the data
directory, where `+"`engine run`"+` leaves the address of its API and, for its own user,
the token. Every flag can be given by an environment variable too; the flag wins.
What is printed goes to standard output, problems and the log to standard error.

| verb | |
|---|---|
`, root.Long)
	var each func(cmd *cobra.Command, fn func(*cobra.Command))
	each = func(cmd *cobra.Command, fn func(*cobra.Command)) {
		for _, sub := range cmd.Commands() {
			if sub.Hidden || sub.Name() == "help" {
				continue
			}
			fn(sub)
			each(sub, fn)
		}
	}
	each(root, func(cmd *cobra.Command) {
		path := strings.TrimPrefix(cmd.CommandPath(), "engine ")
		fmt.Fprintf(&b, "| [%s](#%s) | %s |\n", path, anchor("engine "+path), cmd.Short)
	})
	each(root, func(cmd *cobra.Command) { section(&b, cmd) })
	return b.String()
}

// anchor is the place of a heading in a page.
func anchor(heading string) string { return strings.ReplaceAll(heading, " ", "-") }

func section(b *bytes.Buffer, cmd *cobra.Command) {
	text := cmd.Long
	if text == "" {
		text = cmd.Short + "."
	}
	fmt.Fprintf(b, "\n## %s\n\n```text\n%s\n```\n\n%s\n", cmd.CommandPath(), cmd.UseLine(), markdown(text))
	if cmd.Example != "" {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", outdent(cmd.Example))
	}
	var rows [][3]string
	cmd.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		if t := f.Value.Type(); t != "bool" {
			name += " " + strings.ReplaceAll(t, "|", "\\|")
		}
		usage, env, _ := strings.Cut(f.Usage, " [$")
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "[]" {
			usage += " (default `" + f.DefValue + "`)"
		}
		rows = append(rows, [3]string{name, strings.ReplaceAll(usage, "|", "\\|"), "`" + strings.TrimSuffix(env, "]") + "`"})
	})
	if len(rows) > 0 {
		b.WriteString("\n| flag | | variable |\n|---|---|---|\n")
		for _, r := range rows {
			fmt.Fprintf(b, "| %s | %s | %s |\n", r[0], r[1], r[2])
		}
	}
}

// markdown keeps indented text as it is and escapes what would be markup.
func markdown(s string) string {
	return strings.NewReplacer("<", "&lt;", "*", "\\*").Replace(s)
}

func outdent(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.TrimPrefix(l, "  ")
	}
	return strings.Join(lines, "\n")
}
