package main

import (
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sensor-engine/engine/specs"
)

//go:embed starter
var starter embed.FS

func (e *env) initVerb() *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Write a directory of specs to start from",
		Long: `Writes a small, commented set of specs that runs as it is: a ticker, two
webhooks of which one needs a token, sensors, a function and a secret; and the
schema that editors complete with. Existing files are never overwritten.`,
		Example: "  engine init demo && engine run demo",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			return e.initDir(dir)
		},
	}
}

// starterFile is one file that init writes.
type starterFile struct {
	name string
	data []byte
	mode fs.FileMode
}

func starterFiles() ([]starterFile, error) {
	var out []starterFile
	for _, name := range []string{"events.yaml", "sensors.yaml", "gitignore"} {
		b, err := starter.ReadFile("starter/" + name)
		if err != nil {
			return nil, err
		}
		if name == "gitignore" { // embed leaves hidden files out
			name = ".gitignore"
		}
		out = append(out, starterFile{name, b, 0o644})
	}
	schema, err := specs.Schema(catalog().Types())
	if err != nil {
		return nil, err
	}
	return append(out,
		starterFile{"engine.schema.json", schema, 0o644},
		starterFile{"webhook.token", []byte(rand.Text() + "\n"), 0o600},
	), nil
}

func (e *env) initDir(dir string) error {
	files, err := starterFiles()
	if err != nil {
		return err
	}
	var there []string
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); err == nil {
			there = append(there, f.name)
		}
	}
	if len(there) > 0 {
		return fmt.Errorf("%s has %s already; nothing was written. Choose an empty directory", dir, strings.Join(there, ", "))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // specs are no secret
		return err
	}
	for _, f := range files {
		if err := writeNew(filepath.Join(dir, f.name), f.data, f.mode); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(e.stdout, filepath.Join(dir, f.name)); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(e.stderr, "Run it: engine run %s\n", dir)
	return err
}

// writeNew writes a file that must not exist.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
