package docs_test

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/spectest"
	"github.com/sensor-engine/engine/specs"
)

const semantics = "../test/semantics"

// rules are the rows of a table, and the file of spec tests that the sentence
// after it links to.
type rules struct {
	head string
	rows []string
	file string
}

var testLink = regexp.MustCompile(`\]\(` + regexp.QuoteMeta(semantics) + `/(\w+_test\.yaml)\)`)

var emphasis = regexp.MustCompile(`\*(\w+)\*`)

// row is the text of a line of a table, its cells joined by " | ".
func row(line string) string {
	line = emphasis.ReplaceAllString(strings.ReplaceAll(strings.Trim(line, "|"), "`", ""), "$1")
	var cells []string
	for c := range strings.SplitSeq(strings.ReplaceAll(line, `\|`, "\x00"), "|") {
		if c = strings.TrimSpace(strings.ReplaceAll(c, "\x00", "|")); c != "" {
			cells = append(cells, c)
		}
	}
	return strings.Join(cells, " | ")
}

// tables are the tables of a page that were not made from code.
func tables(page string) (out []rules) {
	page = marker.ReplaceAllString(fenced.ReplaceAllString(page, ""), "")
	for part := range strings.SplitSeq(page, "\n\n") {
		lines := strings.Split(strings.TrimSpace(part), "\n")
		if strings.HasPrefix(lines[0], "|") {
			r := rules{head: row(lines[0])}
			for _, line := range lines[2:] {
				r.rows = append(r.rows, row(line))
			}
			out = append(out, r)
		} else if n := len(out) - 1; n >= 0 && out[n].file == "" {
			out[n].file = "-" // what comes first after the table says it
			if m := testLink.FindStringSubmatch(part); m != nil {
				out[n].file = m[1]
			}
		}
	}
	return out
}

// TestSemantics: each row of the tables of sensors.md is a spec test that has
// its text as name, and passes; and there are no others.
func TestSemantics(t *testing.T) {
	want := map[string][]string{}
	for _, r := range tables(pages(t)["sensors.md"]) {
		switch {
		case r.head == "place | names": // which names there are, not what happens
		case r.file == "-":
			t.Errorf("the table %q is not followed by a link to its spec tests in %s", r.head, semantics)
		default:
			want[r.file] = append(want[r.file], r.rows...)
		}
	}
	runner, files := semanticsTests(t)
	for i := range files {
		file := filepath.Base(files[i].Pos.File)
		for j := range files[i].Tests {
			test := &files[i].Tests[j]
			if k := slices.Index(want[file], test.Name); k >= 0 {
				want[file] = slices.Delete(want[file], k, k+1)
			} else {
				t.Errorf("%s: no table of sensors.md that links to %s has the row %q", test.Pos, file, test.Name)
			}
			t.Run(file+"/"+test.Name, func(t *testing.T) { passes(t, runner, test) })
		}
	}
	for file, rows := range want {
		for _, row := range rows {
			t.Errorf("sensors.md: %s has no test with the name %q", file, row)
		}
	}
}

// semanticsTests loads the spec tests of the rules, and what runs them.
func semanticsTests(t *testing.T) (*spectest.Runner, []specs.TestFile) {
	t.Helper()
	l, err := catalog.Loader().Load(t.Context(), semantics)
	if err != nil {
		t.Fatal(err)
	}
	tests, err := catalog.Loader().LoadTests(t.Context(), semantics)
	if err != nil {
		t.Fatal(err)
	}
	c := engine.NewCompiler(catalog)
	if found := slices.Concat(l.Diagnostics, c.Check(l.Set(), l.Invalid...), tests.Diagnostics); len(found) > 0 {
		t.Fatal(found)
	}
	return spectest.New(l.Set(), c.Sensors(l.Set()), catalog.Sources), tests.Files
}

// passes runs a spec test.
func passes(t *testing.T, runner *spectest.Runner, test *specs.Test) {
	if found := runner.Check(test); len(found) > 0 {
		t.Fatal(found)
	}
	res, err := runner.Run(test)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range res.Failures {
		t.Errorf("%s: %s\n%s", f.Pos, f.Message, strings.Join(f.Diff, "\n"))
	}
}
