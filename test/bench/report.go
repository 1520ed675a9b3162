package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// report is everything that was measured.
type report struct {
	Machine   machine     `json:"machine"`
	Scenarios []*measured `json:"scenarios"`
}

// measured is a scenario's results.
type measured struct {
	Name    string              `json:"name"`
	Title   string              `json:"title"`
	Load    float64             `json:"load_before"` // average of the last minute
	Columns []string            `json:"columns"`
	Foreign []string            `json:"foreign,omitempty"` // columns of programs not ours
	Rounds  map[string][]result `json:"rounds"`
	Figures []*value            `json:"figures"`
}

// value is a figure's median over the rounds.
type value struct {
	Key    string    `json:"key"`
	Text   string    `json:"text"`
	Unit   string    `json:"unit,omitempty"`
	Value  float64   `json:"value"`
	Rounds []float64 `json:"rounds"`
	Budget float64   `json:"budget,omitempty"`
	Lower  bool      `json:"lower_is_better,omitempty"`
}

// missed tells whether the value misses its budget.
func (v *value) missed() bool {
	return v.Budget > 0 && (v.Lower && v.Value > v.Budget || !v.Lower && v.Value < v.Budget)
}

// goal is the budget in words, "" without one.
func (v *value) goal() string {
	if v.Budget == 0 {
		return ""
	}
	sign := "≥ "
	if v.Lower {
		sign = "≤ "
	}
	return strings.TrimSpace(sign + short(v.Budget) + " " + v.Unit)
}

func (v *value) String() string {
	return strings.TrimSpace(short(v.Value) + " " + v.Unit)
}

// short prints a number with three digits.
func short(f float64) string {
	if math.Abs(f) >= 100 {
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatFloat(f, 'g', 3, 64)
}

// machine describes where it was measured.
type machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Memory int    `json:"memory_gib"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

func machineNow() machine {
	m := machine{CPU: runtime.GOARCH, Cores: runtime.NumCPU(), Kernel: runtime.GOOS, Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(b), "model name\t: "); ok {
			m.CPU, _, _ = strings.Cut(rest, "\n")
		}
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kib int
		if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err == nil {
			m.Memory = (kib + 1<<19) >> 20
		}
	}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		release, _, _ := strings.Cut(string(b), "-")
		m.Kernel = "Linux " + strings.TrimSpace(release)
	}
	return m
}

func (m machine) String() string {
	return fmt.Sprintf("%d cores (%s), %d GiB of memory, %s, %s", m.Cores, m.CPU, m.Memory, m.Kernel, m.Go)
}

// loadNow is the load average of the last minute, 0 where it is not told.
func loadNow() float64 {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(b), " ")
	f, _ := strconv.ParseFloat(first, 64)
	return f
}

// readReports joins what several runs wrote; the last one that has a scenario counts.
func readReports(paths []string) (*report, error) {
	var all report
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		var rep report
		if err := json.Unmarshal(b, &rep); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		all.Machine = rep.Machine
		for _, m := range rep.Scenarios {
			if i := slices.IndexFunc(all.Scenarios, func(x *measured) bool { return x.Name == m.Name }); i >= 0 {
				all.Scenarios[i] = m
			} else {
				all.Scenarios = append(all.Scenarios, m)
			}
		}
	}
	return &all, nil
}

// check turns a broken promise into an error: a fast engine that loses events
// has not been measured.
func (rep *report) check() error {
	var errs []error
	for _, m := range rep.Scenarios {
		for _, c := range m.Columns {
			if slices.Contains(m.Foreign, c) {
				continue
			}
			if r := typicalOf(m.Rounds[c]); r.Lost > 0 || r.Duplicated > 0 || r.Refused > 0 || r.Foreign > 0 {
				errs = append(errs, fmt.Errorf("%s, %s: %d lost, %d duplicated, %d refused, %d altered", m.Name, c, r.Lost, r.Duplicated, r.Refused, r.Foreign))
			}
		}
	}
	return errors.Join(errs...)
}

// rows are the table of a scenario, the head first.
func (m *measured) rows() [][]string {
	typical := map[string]result{}
	waits, sleeps := false, false
	for _, c := range m.Columns {
		r := typicalOf(m.Rounds[c])
		typical[c] = r
		waits, sleeps = waits || r.WaitingMiB > 0, sleeps || r.Function > 0
	}
	rows := [][]string{append([]string{""}, m.Columns...)}
	row := func(label, format string, of func(result) float64) {
		cells := []string{label}
		for _, c := range m.Columns {
			cells = append(cells, fmt.Sprintf(format, of(typical[c])))
		}
		rows = append(rows, cells)
	}
	row("accepted/s", "%.0f", func(r result) float64 { return r.Accepted })
	row("end to end/s", "%.0f", func(r result) float64 { return r.EndToEnd })
	for i, p := range percentiles {
		row(fmt.Sprintf("p%g ms", p), "%.2f", func(r result) float64 { return r.Latency[i] })
	}
	row("max ms", "%.2f", func(r result) float64 { return r.Latency[len(percentiles)] })
	row("answer p50 ms", "%.2f", func(r result) float64 { return r.Answer[0] })
	row("answer p99 ms", "%.2f", func(r result) float64 { return r.Answer[2] })
	row("lost", "%.0f", func(r result) float64 { return float64(r.Lost) })
	row("duplicated", "%.0f", func(r result) float64 { return float64(r.Duplicated) })
	row("CPU s/1,000 events", "%.4f", func(r result) float64 { return r.CPU })
	row("peak memory MiB", "%.0f", func(r result) float64 { return r.PeakMiB })
	row("CPU taken by others %", "%.0f", func(r result) float64 { return 100 * r.Others })
	if waits {
		row("memory while they wait MiB", "%.0f", func(r result) float64 { return r.WaitingMiB })
		row("files while they wait MiB", "%.0f", func(r result) float64 { return r.DiskMiB })
	}
	if sleeps {
		row("mean time of the function ms", "%.2f", func(r result) float64 { return r.Function })
	}
	return rows
}

func (rep *report) print(out io.Writer, kept map[string]float64) error {
	fmt.Fprintf(out, "%s\n", rep.Machine)
	for _, m := range rep.Scenarios {
		fmt.Fprintf(out, "\n%s: %s (rounds: %d, load before: %.1f)\n", m.Name, m.Title, len(m.Rounds[m.Columns[0]]), m.Load)
		if err := m.table(out); err != nil {
			return err
		}
		for _, v := range m.Figures {
			fmt.Fprintf(out, "  %s = %s", v.Text, v)
			if goal := v.goal(); goal != "" {
				fmt.Fprintf(out, ", budget %s", goal)
				if v.missed() {
					fmt.Fprint(out, " MISSED")
				}
			}
			if k := kept[v.Key]; k > 0 && v.Unit == "" {
				fmt.Fprintf(out, ", kept %s: %s", short(k), change(v, k))
			}
			if len(v.Rounds) > 1 {
				fmt.Fprint(out, " (rounds:")
				for _, r := range v.Rounds {
					fmt.Fprint(out, " ", short(r))
				}
				fmt.Fprint(out, ")")
			}
			fmt.Fprintln(out)
		}
	}
	return nil
}

// change compares a value with the kept one.
func change(v *value, kept float64) string {
	by := v.Value/kept - 1
	word := "better"
	switch {
	case math.Abs(by) < 0.005:
		return "the same"
	case (by < 0) != v.Lower:
		word = "worse"
	}
	return fmt.Sprintf("%+.0f %%, %s", 100*by, word)
}

// readKept reads the ratios of earlier; none when there is no such file.
func readKept(path string) (map[string]float64, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	kept := map[string]float64{}
	if err := json.Unmarshal(b, &kept); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return kept, nil
}

// publish writes the results into dir/performance.md, between its markers, and
// dir/images/performance.svg, and the ratios to kept, where those of other
// scenarios stay.
func (rep *report) publish(dir, kept string) error {
	page := filepath.Join(dir, "performance.md")
	b, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"machine": rep.Machine.String() + ".\n", "ratios": rep.figureTable(), "tables": rep.tables()} {
		begin, end := "<!-- results: "+name+" -->\n", "<!-- end of results: "+name+" -->"
		head, rest, ok := bytes.Cut(b, []byte(begin))
		_, foot, ok2 := bytes.Cut(rest, []byte(end))
		if !ok || !ok2 {
			return fmt.Errorf("%s has no markers %s… %s", page, begin, end)
		}
		b = slices.Concat(head, []byte(begin+text+end), foot)
	}
	ratios, err := readKept(kept)
	if err != nil {
		return err
	}
	ratios = maps.Clone(ratios)
	if ratios == nil {
		ratios = map[string]float64{}
	}
	var bars []*value
	for _, m := range rep.Scenarios {
		for _, v := range m.Figures {
			if v.Unit == "" {
				ratios[v.Key] = math.Round(v.Value*1000) / 1000
				bars = append(bars, v)
			}
		}
	}
	js, err := json.MarshalIndent(ratios, "", "  ")
	if err != nil {
		return err
	}
	for path, content := range map[string][]byte{
		page: b, kept: append(js, '\n'), filepath.Join(dir, "images", "performance.svg"): picture(bars),
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// figureTable is the figures in Markdown.
func (rep *report) figureTable() string {
	var b strings.Builder
	b.WriteString("| | median | budget | rounds, lowest to highest |\n|---|--:|--:|---|\n")
	for _, m := range rep.Scenarios {
		for _, v := range m.Figures {
			goal := v.goal()
			if v.missed() {
				goal += ", **missed**"
			}
			rounds := fmt.Sprintf("%d: %s", len(v.Rounds), short(slices.Min(v.Rounds)))
			if len(v.Rounds) > 1 {
				rounds += " to " + short(slices.Max(v.Rounds))
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", v.Text, v, goal, rounds)
		}
	}
	return b.String()
}

// tables are all results in Markdown.
func (rep *report) tables() string {
	var b strings.Builder
	for _, m := range rep.Scenarios {
		fmt.Fprintf(&b, "\n### `%s`\n\n%s. Load average before: %.1f.\n\n", m.Name, strings.ToUpper(m.Title[:1])+m.Title[1:], m.Load)
		for i, row := range m.rows() {
			fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
			if i == 0 {
				fmt.Fprintf(&b, "|---%s|\n", strings.Repeat("|--:", len(row)-1))
			}
		}
	}
	return b.String() + "\n"
}
