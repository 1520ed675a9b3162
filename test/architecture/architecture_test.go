package architecture

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sensor-engine/engine"

// pkg is what `go list -json` says of a package, with paths below the module
// shortened: "bus", not "github.com/sensor-engine/engine/bus".
type pkg struct {
	ImportPath, Dir, Doc               string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
}

// roots are the contracts that everything above them may know.
var roots = []string{"specs", "specs/expression", "specs/jsonschema", "specs/schedule", "bus", "sources", "sensors", "triggers", "sources/ingress"}

// mayImport tells whether production code of from may import to, both below
// the module.
func mayImport(from, to string) bool {
	contracts := within(to, "specs") || to == "bus"
	room, rest, _ := strings.Cut(from, "/")
	switch from {
	case "triggers/process":
		return false
	case "sources/ingress":
		return to == "specs"
	}
	switch room {
	case "specs":
		return rest != "" && rest != "schedule" && within(to, "specs")
	case "bus":
		return to == "specs" || rest != "" && within(to, "bus")
	case "sensors":
		return contracts || within(to, "sensors")
	case "sources", "triggers":
		switch rest {
		case "":
			return contracts
		case "all": // the list of every type
			return within(to, room)
		}
		// Its root and what it keeps below itself, never a sibling; how programs
		// are started, which both rooms do; and how requests are received.
		return contracts || to == room || within(to, from) || to == "triggers/process" ||
			room == "sources" && to == "sources/ingress" ||
			// What the kinds share that run programs, keep processes waiting or call
			// others over the network.
			room == "triggers" && (to == "triggers/worker" || to == "triggers/program" || to == "triggers/outbound")
	case "engine":
		return slices.Contains(roots, to) || within(to, "engine")
	case "cmd":
		return true
	case "examples":
		return to == "sources/generic/eventing" // programs of users: generated contracts alone
	case "test":
		return within(to, "test") // from outside, as users do
	}
	return false
}

// pure tells whether a package must do the same for the same input: no clock,
// no I/O, no goroutine.
func pure(p string) bool { return within(p, "sensors") || p == "specs/schedule" }

// within tells whether p is dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// checkImports returns what the imports of p break.
func checkImports(p pkg) (bad []string) {
	for _, to := range p.Imports {
		if to, ours := strings.CutPrefix(to, module+"/"); ours && !mayImport(p.ImportPath, to) {
			bad = append(bad, fmt.Sprintf("%s imports %s: imports go one way, see docs/architecture.md", p.ImportPath, to))
		}
	}
	// Tests may use more, but YAML is read in one place.
	for _, to := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
		if strings.HasPrefix(to, "gopkg.in/yaml.") && !within(p.ImportPath, "specs") {
			bad = append(bad, fmt.Sprintf("%s imports %s: only specs reads YAML", p.ImportPath, to))
		}
	}
	if pure(p.ImportPath) {
		for _, to := range p.Imports {
			if slices.Contains([]string{"os", "net", "net/http", "os/exec", "math/rand", "math/rand/v2", "crypto/rand", "log/slog", "log"}, to) {
				bad = append(bad, fmt.Sprintf("%s imports %s: it is pure, see docs/architecture.md", p.ImportPath, to))
			}
		}
	}
	return bad
}

// checkDoc returns what is wrong with the package comment.
func checkDoc(p pkg) (bad []string) {
	if p.Doc == "" {
		bad = append(bad, fmt.Sprintf("%s has no package comment: say what it owns and what it must not touch", p.ImportPath))
	}
	return bad
}

// clocks are the names of package time that tell or wait for real time.
var clocks = []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Sleep", "Tick"}

// checkSource returns what one production file of the package breaks.
func checkSource(pkgPath string, fset *token.FileSet, f *ast.File) (bad []string) {
	report := func(n ast.Node, what string) {
		bad = append(bad, fmt.Sprintf("%s: %s", fset.Position(n.Pos()), what))
	}
	pure := pure(pkgPath)
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil && n.Name.Name == "init" {
				report(n, "init(): nothing registers itself, hand the value in")
			}
		case *ast.GoStmt:
			if pure {
				report(n, "go statement: a pure package starts no goroutine")
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && pure && x.Name == "time" && slices.Contains(clocks, n.Sel.Name) {
				report(n, "time."+n.Sel.Name+": a pure package knows no clock, time comes with the input")
			}
		}
		return true
	})
	return bad
}

func TestHouseRules(t *testing.T) {
	for _, p := range list(t) {
		bad := append(checkImports(p), checkDoc(p)...)
		fset := token.NewFileSet()
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if ast.IsGenerated(f) {
				continue
			}
			bad = append(bad, checkSource(p.ImportPath, fset, f)...)
		}
		for _, b := range bad {
			t.Error(b)
		}
	}
}

// list returns all packages of the module.
func list(t *testing.T) (pkgs []pkg) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Doc,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module+"/")
		pkgs = append(pkgs, p)
	}
	if !slices.ContainsFunc(pkgs, func(p pkg) bool { return p.ImportPath == "specs" }) {
		t.Fatal("go list did not find specs: the rules would pass on nothing")
	}
	return pkgs
}

// TestViolationsAreCaught plants one violation of each rule.
func TestViolationsAreCaught(t *testing.T) {
	for _, c := range []struct {
		from, to string
		ok       bool
	}{
		{"specs", "bus", false},
		{"specs", "specs/expression", false},
		{"specs/expression", "specs", true},
		{"specs", "specs/schedule", false},
		{"specs/schedule", "specs", false},
		{"sensors", "specs/schedule", true},
		{"sources/calendar", "specs/schedule", true},
		{"sensors", "sources/calendar", false},
		{"bus", "specs", true},
		{"bus", "bus/jetstream", false},
		{"bus/jetstream", "bus", true},
		{"bus/jetstream", "engine", false},
		{"sensors", "bus", true},
		{"sensors", "specs/expression", true},
		{"sensors", "bus/jetstream", false},
		{"sensors", "triggers", false},
		{"sources", "sources/webhook", false},
		{"sources/webhook", "sources", true},
		{"sources/webhook", "sources/webhook/auth", true},
		{"sources/webhook", "sources/ticker", false},
		{"sources/webhook", "triggers", false},
		{"sources/all", "sources/ticker", true},
		{"triggers/http", "triggers/exec", false},
		{"triggers/exec", "triggers/process", true},
		{"triggers/exec", "triggers/worker", true},
		{"triggers/wasm", "triggers/program", true},
		{"triggers/http", "triggers/outbound", true},
		{"triggers/outbound", "triggers/http", false},
		{"triggers/worker", "triggers/exec", false},
		{"sources/driver", "triggers/process", true},
		{"sources/driver", "triggers/worker", false},
		{"triggers/process", "specs", false},
		{"sources/webhook", "sources/ingress", true},
		{"triggers/http", "sources/ingress", false},
		{"sources/ingress", "specs", true},
		{"sources/ingress", "sources", false},
		{"triggers/http", "bus", true},
		{"triggers/http", "bus/jetstream", false},
		{"engine", "sources", true},
		{"engine/api", "engine", true},
		{"engine", "sources/webhook", false},
		{"engine", "bus/jetstream", false},
		{"engine", "cmd/engine", false},
		{"cmd/engine", "bus/jetstream", true},
		{"test/e2e", "test/load", true},
		{"test/e2e", "engine", false},
		{"util", "bus", false},
	} {
		bad := checkImports(pkg{ImportPath: c.from, Imports: []string{"fmt", module + "/" + c.to}})
		if (len(bad) == 0) != c.ok {
			t.Errorf("%s → %s: allowed = %v, want %v", c.from, c.to, len(bad) == 0, c.ok)
		}
	}
	for name, p := range map[string]pkg{
		"yaml in the engine":       {ImportPath: "engine", Imports: []string{"gopkg.in/yaml.v3"}},
		"yaml in a test":           {ImportPath: "cmd/engine", XTestImports: []string{"gopkg.in/yaml.v3"}},
		"files in sensors":         {ImportPath: "sensors", Imports: []string{"os"}},
		"random numbers in a step": {ImportPath: "sensors/state", Imports: []string{"math/rand/v2"}},
	} {
		if len(checkImports(p)) != 1 {
			t.Errorf("%s: not caught", name)
		}
	}
	if len(checkImports(pkg{ImportPath: "specs", Imports: []string{"gopkg.in/yaml.v3", "os"}})) != 0 {
		t.Error("specs may read YAML files")
	}
	if len(checkDoc(pkg{ImportPath: "bus"})) != 1 {
		t.Error("a missing package comment is not caught")
	}
	for _, c := range []struct {
		pkg, src string
		want     int
	}{
		{"engine", "func init() {}", 1},
		{"engine", "type T struct{}; func (T) init() {}", 0},
		{"engine", "func f() { go f(); _ = time.Now() }", 0},
		{"sensors", "func f() { go f() }", 1},
		{"sensors", "func f() { _ = time.Now() }", 1},
		{"sensors", "var clock = time.Now", 1},
		{"specs/schedule", "func f() { _ = time.Now() }", 1},
		{"sensors", "func f() { _ = time.Unix(0, 0) }", 0},
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", "package x\nimport \"time\"\n"+c.src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		if bad := checkSource(c.pkg, fset, f); len(bad) != c.want {
			t.Errorf("%s in %s: %d findings, want %d: %v", c.src, c.pkg, len(bad), c.want, bad)
		}
	}
}
