package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// table is the results as a Markdown table.
func table(results []*result) string {
	var b strings.Builder
	b.WriteString("| fault | passes when | × | acknowledged | lost | enqueued twice | calls repeated | recovery | result |\n|---|---|--:|--:|--:|--:|--:|--:|---|\n")
	for _, r := range results {
		verdict := "pass"
		switch {
		case r.Skipped != "":
			verdict = "left out: " + r.Skipped
		case len(r.Failures) > 0:
			verdict = "FAIL: " + r.Failures[0]
		}
		if len(r.Notes) > 0 {
			verdict += "; " + strings.Join(r.Notes, "; ")
		}
		recovery := "–"
		if r.Recovery > 0 {
			recovery = fmt.Sprintf("%.2f s", r.Recovery)
		}
		fmt.Fprintf(&b, "| `%s`: %s | %s | %d | %d | %d | %d | %d | %s | %s |\n",
			r.Fault, cell(r.Title), cell(r.Passes), r.Repetitions, r.Acked, r.Lost, r.Twice, r.Repeated, recovery, cell(verdict))
	}
	return b.String()
}

// proof is the results of removed protections as a Markdown table.
func proof(results []*result) string {
	var b strings.Builder
	b.WriteString("| without | fault | what it said |\n|---|---|---|\n")
	for _, r := range results {
		said := "NOT NOTICED"
		switch {
		case r.Skipped != "":
			said = "left out: " + r.Skipped
		case len(r.Seen) > 0:
			said = r.Seen[0]
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s |\n", cell(r.Removed), r.Fault, cell(said))
	}
	return b.String()
}

// cell makes text safe for one cell.
func cell(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "*", `\*`, "_", `\_`).Replace(s)
}

// writePage puts results on a page, between its markers. Rows of faults that
// were not tried this time stay.
func writePage(path string, results []*result, proved bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	name, made := "faults", table(results)
	if proved {
		name, made = "proof", proof(results)
	}
	begin, end := "<!-- results: "+name+" -->\n", "<!-- end of results: "+name+" -->"
	head, rest, ok := strings.Cut(string(text), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no markers %s… %s", path, begin, end)
	}
	machine := fmt.Sprintf("%d CPUs, %s/%s, %s.\n\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	return os.WriteFile(path, []byte(head+begin+machine+merge(old, made)+end+tail), 0o644)
}

// merge returns the table made, with the rows of old that it has not.
func merge(old, made string) string {
	const heading = 2 // lines
	lines := strings.SplitAfter(made, "\n")
	rows := map[string]string{}
	for _, l := range lines[heading:] {
		rows[rowKey(l)] = l
	}
	var b strings.Builder
	b.WriteString(strings.Join(lines[:heading], ""))
	_, old, _ = strings.Cut(old, "|--")
	_, old, _ = strings.Cut(old, "\n")
	for l := range strings.Lines(old) {
		key := rowKey(l)
		if key == "" {
			continue
		}
		if n, again := rows[key]; again {
			l = n
			delete(rows, key)
		}
		b.WriteString(l)
	}
	for _, l := range lines[heading:] {
		if rows[rowKey(l)] == l {
			b.WriteString(l)
		}
	}
	return b.String()
}

// rowKey is what a row is about: its first two cells, or of a fault its name.
func rowKey(row string) string {
	cells := strings.SplitN(row, " | ", 3)
	if len(cells) < 3 {
		return ""
	}
	if name, _, fault := strings.Cut(cells[0], "`: "); fault {
		return name
	}
	return cells[0] + cells[1]
}
