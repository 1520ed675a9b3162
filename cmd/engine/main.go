// Command engine turns YAML files into running automation, and looks at and
// steers an engine that runs. This package owns the command line: flags,
// environment, output and exit codes. It wires the other packages together and
// decides nothing they could decide.
package main

import (
	"context"
	"os"
	_ "time/tzdata" // zones in specs must not depend on the machine
)

// version is set by the linker.
var version = "dev"

func main() {
	e := &env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, lookup: os.LookupEnv,
		version: version, exit: os.Exit,
	}
	os.Exit(execute(context.Background(), e, os.Args[1:]))
}
