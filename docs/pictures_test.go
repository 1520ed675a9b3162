package docs_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"html"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/engine/spectest"
	"github.com/sensor-engine/engine/specs"
)

// lane is the timeline of one spec test: its events and firings are where the
// test has them, the rest explains.
type lane struct {
	title, spec string
	file, row   string // the spec test, by its file and the beginning of its name
	until       time.Duration
	clock       bool // times of day, not since the first event
	list        bool // the input is a list, not what a condition names
	bars        []bar
	notes       []note
}

// bar is the time for which an event waits, or the sensor.
type bar struct {
	from, to time.Duration
	kind     barKind
	text     string // below it
}

type barKind int

const (
	used    barKind = iota // waits, and fires
	lost                   // waits, and is given up
	waits                  // waits still
	counted                // a time of the sensor's passes
)

// note says what becomes of an event: its name and a verdict that the test
// expects at that time.
type note struct {
	at   time.Duration
	text string
}

const minute = time.Minute

// timing are the timelines of images/timing.svg.
var timing = []lane{
	{
		title: "count: 3", spec: "a", file: "count_test.yaml", row: "a1 a2 a3 a4 a5 a6 |", until: 6 * minute, list: true,
		bars: []bar{{0, 2 * minute, used, ""}, {3 * minute, 5 * minute, used, ""}},
	},
	{
		title: "count: 3, within: 10m", spec: "a", file: "count_test.yaml", row: "a1 … 6 min … a2 … 6 min … a3 | a, count 3", until: 14 * minute, list: true,
		bars:  []bar{{0, 10 * minute, lost, ""}, {10 * minute, 14 * minute, waits, ""}},
		notes: []note{{10 * minute, "a1 expired"}},
	},
	{
		title: "count: 2, distinct", spec: "a, with the values x, x, y", file: "distinct_test.yaml", row: "a1(x) a2(x) a3(y) | a, count 2", until: 3 * minute, list: true,
		bars:  []bar{{0, 1 * minute, lost, ""}, {1 * minute, 2 * minute, used, ""}},
		notes: []note{{1 * minute, "a1 superseded"}},
	},
	{
		title: "absent: {for: 5m, after: d}", spec: "absent(h)", file: "absence_test.yaml", row: "d1 … 4 min … d2 … 5 min |", until: 12 * minute,
		bars:  []bar{{0, 4 * minute, lost, ""}, {4 * minute, 9 * minute, used, "5 min without h"}},
		notes: []note{{4 * minute, "d1 superseded"}},
	},
	{
		title: "", spec: "absent(h), answered", file: "absence_test.yaml", row: "d1 … 4 min … h2 |", until: 12 * minute,
		bars:  []bar{{0, 4 * minute, lost, ""}},
		notes: []note{{4 * minute, "d1 answered"}},
	},
	{
		title: "cooldown: 5m", spec: "a", file: "cooldown_test.yaml", row: "a1 … 2 min … a2 … 3 min … a3 |", until: 12 * minute,
		bars:  []bar{{0, 5 * minute, counted, "quiet 5 min"}, {5 * minute, 10 * minute, counted, "quiet 5 min"}},
		notes: []note{{2 * minute, "a2 suppressed"}},
	},
	{
		title: "debounce: {quiet: 5m}", spec: "a", file: "debounce_test.yaml", row: "a1 … 4 min … a2 … 4 min … a3 … 5 min | a, quiet 5m |", until: 15 * minute,
		bars:  []bar{{0, 4 * minute, lost, ""}, {4 * minute, 8 * minute, lost, ""}, {8 * minute, 13 * minute, used, "quiet 5 min"}},
		notes: []note{{4 * minute, "a1 debounced"}, {8 * minute, "a2 debounced"}},
	},
	{
		title: "debounce: {quiet: 5m, max: 10m}", spec: "a", file: "debounce_test.yaml", row: "a1 … 4 min … a2 … 4 min … a3 … 2 min |", until: 15 * minute,
		bars:  []bar{{0, 4 * minute, lost, ""}, {4 * minute, 8 * minute, lost, ""}, {8 * minute, 10 * minute, used, ""}},
		notes: []note{{4 * minute, "a1 debounced"}, {8 * minute, "a2 debounced"}},
	},
	{
		title: "batch: {size: 2, wait: 10m}", spec: "a", file: "batch_test.yaml", row: "a1 … 3 min … a2 … 3 min … a3", until: 18 * minute, list: true,
		bars: []bar{{0, 3 * minute, used, ""}, {6 * minute, 16 * minute, used, "waits 10 min, then fires with what there is"}},
	},
	{
		title: "reset: {cron: \"0 0 * * *\"}", spec: "a && b", file: "reset_test.yaml", row: "a1 at 23:50, b2 at 00:10 |", until: 26 * minute, clock: true,
		bars:  []bar{{0, 10 * minute, lost, ""}, {20 * minute, 26 * minute, waits, ""}},
		notes: []note{{10 * minute, "a1 expired"}},
	},
}

const (
	firstLane, laneHeight = 78, 108
	axis, axisEnd         = 290, 960
)

// drawing is an SVG in the making.
type drawing struct{ bytes.Buffer }

func (d *drawing) put(format string, args ...any) { fmt.Fprintf(&d.Buffer, format+"\n", args...) }

func (d *drawing) text(x float64, y int, attributes, s string) {
	d.put(`<text x="%g" y="%d" %s>%s</text>`, x, y, attributes, html.EscapeString(s))
}

// timelines draws lanes on a card like that of the other pictures.
func timelines(lanes []lane, title, desc string, find func(file, row string) (*specs.Test, []spectest.Firing)) []byte {
	height := firstLane + laneHeight*len(lanes)
	d := &drawing{}
	d.put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 %d" width="1000" height="%d" role="img" aria-labelledby="t d" font-family="ui-sans-serif, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">`, height, height)
	d.put("<title id=\"t\">%s</title>\n<desc id=\"d\">%s</desc>", html.EscapeString(title), html.EscapeString(desc))
	d.put(`<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto"><path d="M0 0 10 5 0 10z" fill="#94a3b8"/></marker></defs>`)
	d.put(`<rect x="1" y="1" width="998" height="%d" rx="14" fill="#f8fafc" stroke="#cbd5e1"/>`, height-2)
	d.legend(34)
	for i := range lanes {
		test, firings := find(lanes[i].file, lanes[i].row)
		if test != nil {
			d.lane(&lanes[i], firstLane+laneHeight*i+38, test, firings)
		}
	}
	d.put("</svg>")
	return d.Bytes()
}

const small = `font-size="12.5" fill="#334155"`

func (d *drawing) legend(y int) {
	d.put(`<circle cx="44" cy="%d" r="9" fill="#0369a1"/>`, y)
	d.text(60, y+4, small, "an event arrives")
	d.bar(190, 226, y, used)
	d.text(238, y+4, small, "it waits and is used")
	d.bar(392, 428, y, lost)
	d.text(440, y+4, small, "it waits and is not used")
	d.bar(620, 656, y, waits)
	d.text(668, y+4, small, "it waits still")
	d.put(`<rect x="776" y="%d" width="34" height="20" rx="5" fill="#fefce8" stroke="#a16207"/>`, y-10)
	d.text(820, y+4, small, "the trigger fires")
}

func (d *drawing) bar(from, to float64, y int, kind barKind) {
	style := map[barKind]string{
		used:    `stroke="#0369a1" stroke-width="5" stroke-linecap="round" opacity="0.55"`,
		lost:    `stroke="#b91c1c" stroke-width="5" stroke-linecap="round" opacity="0.55" stroke-dasharray="4 4"`,
		waits:   `stroke="#64748b" stroke-width="5" stroke-linecap="round" opacity="0.55" stroke-dasharray="4 4"`,
		counted: `stroke="#a16207" stroke-width="5" opacity="0.35"`,
	}[kind]
	d.put(`<path d="M%g %d H%g" %s/>`, from, y, to, style)
}

func (d *drawing) lane(l *lane, y int, test *specs.Test, firings []spectest.Firing) {
	x := func(at time.Duration) float64 {
		const room = 70 // for the last label
		return float64(int(axis + 30 + (axisEnd-room-axis)*float64(at)/float64(l.until)))
	}
	when := func(at time.Duration) string {
		switch {
		case l.clock:
			return test.StartTime().Add(at).Format("15:04")
		case at == 0:
			return "0"
		}
		return fmt.Sprintf("%g min", at.Minutes())
	}
	if l.title == "" {
		d.text(30, y+4, small, l.spec)
	} else {
		d.text(30, y-4, `font-size="15" font-weight="600" fill="#0f172a"`, l.title)
		d.text(30, y+15, small, l.spec)
	}
	d.put(`<path d="M%d %d H%d" stroke="#94a3b8" stroke-width="1.5" marker-end="url(#a)"/>`, axis, y, axisEnd)
	for _, b := range l.bars {
		d.bar(x(b.from), x(b.to), y, b.kind)
		if b.text != "" {
			d.text((x(b.from)+x(b.to))/2, y+29, `text-anchor="middle" font-size="12" fill="#64748b"`, b.text)
		}
	}
	labels := map[float64]string{}
	for i := range test.Events {
		name, value := eventName(&test.Events[i])
		at := test.Events[i].At.D()
		fill := map[byte]string{'a': "#0369a1", 'd': "#0369a1", 'b': "#047857", 'h': "#047857"}[name[0]]
		d.put(`<circle cx="%g" cy="%d" r="14" fill="%s"/>`, x(at), y, fill)
		d.text(x(at), y+4, `text-anchor="middle" font-size="12.5" font-weight="600" fill="#fff"`, name)
		if labels[x(at)] = when(at); value != "" {
			labels[x(at)] = value + ", " + when(at)
		}
	}
	for _, f := range firings {
		at, text := x(f.At), fired(f.Input, l.list)
		width := 14 + 7*float64(len(text))
		if labels[at] == "" {
			d.put(`<path d="M%g %d V%d" stroke="#a16207" stroke-width="1.6"/>`, at, y-9, y+28)
			labels[at] = when(f.At)
		} else {
			d.put(`<path d="M%g %d V%d" stroke="#a16207" stroke-width="1.6"/>`, at, y+15, y+28)
		}
		d.put(`<rect x="%g" y="%d" width="%g" height="22" rx="5" fill="#fefce8" stroke="#a16207"/>`, at-width/2, y+28, width)
		d.text(at, y+43, `text-anchor="middle" font-size="12.5" fill="#713f12"`, text)
	}
	for _, n := range l.notes {
		d.text(x(n.at), y-36, `text-anchor="middle" font-size="12" fill="#b91c1c"`, n.text)
		if labels[x(n.at)] == "" {
			d.put(`<path d="M%g %d V%d" stroke="#b91c1c" stroke-width="1.6"/>`, x(n.at), y-14, y+14)
			labels[x(n.at)] = when(n.at)
		}
	}
	for _, at := range slices.Sorted(maps.Keys(labels)) {
		d.text(at, y-20, `text-anchor="middle" font-size="12" fill="#64748b"`, labels[at])
	}
}

// eventName is the name that a test gives an event by its data, and the value
// with it.
func eventName(e *specs.TestEvent) (name, value string) {
	if m, ok := e.Data.Root.(map[string]any); ok {
		value, _ = m["v"].(string)
		name, _ = m["name"].(string)
		return name, value
	}
	name, _ = e.Data.Root.(string)
	return name, ""
}

// fired names the events of a firing.
func fired(input any, list bool) string {
	all, ok := input.([]any)
	if !ok {
		return fmt.Sprint(input)
	}
	var parts []string
	for _, v := range all {
		parts = append(parts, fired(v, true))
	}
	text := strings.Join(parts, " ")
	if list {
		text = "[" + text + "]"
	}
	return text
}

// TestPictures: the timelines are those of spec tests, every picture is XML
// with a title and a description. With -update they are drawn.
func TestPictures(t *testing.T) {
	runner, files := semanticsTests(t)
	find := func(file, row string) (*specs.Test, []spectest.Firing) {
		for i := range files {
			for j := range files[i].Tests {
				test := &files[i].Tests[j]
				if filepath.Base(files[i].Pos.File) != file || !strings.HasPrefix(test.Name, row) {
					continue
				}
				res, err := runner.Run(test)
				if err != nil || len(res.Failures) > 0 {
					t.Errorf("%s: %v %v", test.Name, res.Failures, err)
				}
				return test, res.Firings
			}
		}
		t.Errorf("%s has no test that begins with %q", file, row)
		return nil, nil
	}
	for _, l := range timing {
		test, _ := find(l.file, l.row)
		for _, n := range l.notes {
			_, outcome, _ := strings.Cut(n.text, " ")
			if test != nil && !slices.ContainsFunc(test.Verdicts, func(v specs.ExpectedVerdict) bool { return v.Outcome == outcome && v.At.D() == n.at }) {
				t.Errorf("%s does not expect %q at %s", test.Name, outcome, n.at)
			}
		}
	}
	const file = "images/timing.svg"
	made := timelines(timing, "When triggers fire", "Timelines of count, distinct, absent, cooldown, debounce, batch and reset: which events arrive, which of them wait, are used or given up, and when the trigger fires. Each is a spec test in test/semantics; the tables of docs/sensors.md say the same in words.", find)
	if *update {
		if err := os.WriteFile(file, made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, made) {
		t.Errorf("%s is out of date (%v): go test ./docs -update", file, err)
	}
	pictures, err := filepath.Glob("images/*.svg")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range pictures {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var svg struct {
			Title string `xml:"title"`
			Desc  string `xml:"desc"`
		}
		if err := xml.Unmarshal(b, &svg); err != nil || svg.Title == "" || svg.Desc == "" {
			t.Errorf("%s: title %q, description %q, %v", name, svg.Title, svg.Desc, err)
		}
	}
}
