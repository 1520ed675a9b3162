package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestMain lets the test binary play the programs that are measured.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case "ceiling":
			main()
			return
		case "faulty":
			err = serveFaulty(os.Args[2], os.Args[3:])
		default:
			os.Exit(m.Run())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// The race detector lets each process that ends sleep for a second.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	os.Exit(m.Run())
}

// serveFaulty passes events on, but of every hundred it loses one, sends one
// twice, alters one and refuses one. A path such as /1 names the sink.
func serveFaulty(listen string, sinks []string) error {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	var n atomic.Int64
	return (&http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			return
		}
		body, _ := io.ReadAll(r.Body)
		to, _ := strconv.Atoi(r.URL.Path[1:])
		send := func(body []byte) {
			_ = post(context.Background(), http.DefaultClient, sinks[to], body)
		}
		w.Header().Set("Content-Length", "0")
		switch n.Add(1) % 100 {
		case 10:
			w.WriteHeader(http.StatusAccepted)
		case 20:
			send(body)
			send(body)
			w.WriteHeader(http.StatusAccepted)
		case 30:
			send(bytes.ToUpper(body))
			send(body)
			w.WriteHeader(http.StatusAccepted)
		case 40:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			send(body)
			w.WriteHeader(http.StatusAccepted)
		}
	})}).Serve(ln)
}

// TestScenarios runs every scenario against a program that takes no time to
// build: the ceiling plays the engine, its specs and flags are not looked at.
func TestScenarios(t *testing.T) {
	o := options{events: 60, warmup: 10, conns: 2, size: 100, rounds: 2, rate: 500, seconds: 0.05, sensors: 3, backlog: 80, workers: 4, patience: time.Second}
	all := o.scenarios(nil)
	for _, s := range all {
		t.Run(s.name, func(t *testing.T) {
			for i, a := range s.attempts {
				if a.name != "ceiling" {
					s.attempts[i].target = o.ceiling()
					s.attempts[i].lanes = a.lanes[:1]
					if len(a.lanes[0].paths) > 1 {
						s.attempts[i].target = o.ceiling("-drop", a.lanes[0].paths[0])
					}
				}
			}
			s.figures = slices.DeleteFunc(s.figures, func(f figure) bool { return f.key == "slow/neighbour" }) // of two lanes
			m, err := o.measure(t.Context(), s, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := (&report{Scenarios: []*measured{m}}).check(); err != nil {
				t.Error(err)
			}
			rounds := o.rounds
			if s.rounds > 0 {
				rounds = s.rounds
			}
			for _, c := range m.Columns {
				if rs := m.Rounds[c]; len(rs) != rounds || rs[0].EndToEnd <= 0 || rs[0].Accepted <= 0 || rs[0].Latency[0] <= 0 {
					t.Errorf("%s: %+v", c, rs)
				}
				if r := m.Rounds[c][0]; s.name == "slow" && r.Function < 10 && !strings.HasPrefix(c, "fast") {
					t.Errorf("%s: the function took %v ms", c, r.Function)
				}
			}
			for _, f := range m.Figures {
				if len(f.Rounds) != rounds || strings.HasSuffix(f.Text, "ceiling") && !(f.Value > 0) {
					t.Errorf("%s: %+v", f.Key, f)
				}
			}
		})
	}
}

// TestLanes runs two streams of events through one process.
func TestLanes(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	two := attempt{target{name: "two", ready: atRoot, command: func(ctx context.Context, _ string, a addresses) (*exec.Cmd, error) {
		return exec.CommandContext(ctx, self, "faulty", a.in, "http://"+a.sinks[0]+"/", "http://"+a.sinks[1]+"/"), nil
	}, foreign: true}, []lane{
		{column: "a", paths: []string{"/0"}, conns: 1, warmup: 1, events: 4, size: 100},
		{column: "b", paths: []string{"/1"}, conns: 1, warmup: 1, events: 3, size: 120},
	}}
	rs, err := two.round(t.Context(), options{patience: time.Second}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range rs {
		if r.EndToEnd <= 0 || r.Lost+r.Duplicated+r.Foreign+r.Refused != 0 {
			t.Errorf("lane %d: %+v", i, r)
		}
	}
}

// TestFaultsAreCounted shows that the harness can fail.
func TestFaultsAreCounted(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The warm-up loses nothing: the first fault is the tenth request.
	faulty := attempt{target{name: "faulty", ready: atRoot, command: func(ctx context.Context, _ string, a addresses) (*exec.Cmd, error) {
		return exec.CommandContext(ctx, "sh", "-c", `trap 'kill $!; exit 0' TERM; "$0" faulty "$1" "http://$2/" & wait`, self, a.in, a.sinks[0]), nil
	}}, []lane{{column: "faulty", paths: []string{"/"}, conns: 2, warmup: 1, events: 299, size: 100}}}
	rs, err := faulty.round(t.Context(), options{patience: time.Second}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := rs[0]
	if r.Lost != 3 || r.Duplicated != 3 || r.Foreign != 3 || r.Refused != 3 {
		t.Errorf("counted %d lost, %d duplicated, %d altered, %d refused; want 3 of each", r.Lost, r.Duplicated, r.Foreign, r.Refused)
	}
	m := &measured{Columns: []string{"faulty"}, Rounds: map[string][]result{"faulty": rs}}
	if (&report{Scenarios: []*measured{m}}).check() == nil {
		t.Error("losses are no error")
	}
	m.Foreign = m.Columns
	if err := (&report{Scenarios: []*measured{m}}).check(); err != nil {
		t.Errorf("losses of others are ours: %v", err)
	}
}

func atRoot(a addresses) string { return "http://" + a.in + "/" }

func TestEndsBeforeReady(t *testing.T) {
	broken := attempt{target{name: "broken", ready: atRoot, command: func(ctx context.Context, _ string, _ addresses) (*exec.Cmd, error) {
		return exec.CommandContext(ctx, "sh", "-c", "echo cannot do it >&2; exit 3"), nil
	}}, []lane{{paths: []string{"/"}, conns: 1, warmup: 1, events: 1, size: 100}}}
	_, err := broken.round(t.Context(), options{patience: time.Second}, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "cannot do it") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("the error does not say why: %v", err)
	}
}

func TestPeers(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ts, err := options{peerCmds: list{"mine=exec " + self + ` ceiling -listen "$LISTEN" -sink "$SINK"`}}.peerTargets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rs, err := attempt{ts[0], []lane{{paths: []string{"/in"}, conns: 1, warmup: 1, events: 5, size: 100}}}.round(t.Context(), options{patience: time.Second}, t.TempDir())
	if err != nil || rs[0].EndToEnd <= 0 || rs[0].Lost != 0 {
		t.Errorf("%+v, %v", rs, err)
	}
	for _, bad := range []options{{peerCmds: list{"nothing"}}, {peers: list{"unknown"}}} {
		if _, err := bad.peerTargets(t.Context()); err == nil {
			t.Errorf("%v passes", bad)
		}
	}
}

func TestChosen(t *testing.T) {
	all := options{events: 100, workers: 1}.scenarios(nil)
	if got, err := chosen(all, "slow, filter"); err != nil || len(got) != 2 || got[0].name != "slow" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := chosen(all, "fliter"); err == nil || !strings.Contains(err.Error(), "durability, filter") {
		t.Errorf("the error does not name what there is: %v", err)
	}
}

// TestReport prints, keeps and publishes results, and reads them again.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	rep := &report{Machine: machine{CPU: "test", Cores: 2}, Scenarios: []*measured{{
		Name: "filter", Title: "one", Columns: []string{"engine"}, Rounds: map[string][]result{"engine": {{Accepted: 100, EndToEnd: 99}}},
		Figures: []*value{
			{Key: "filter/engine", Text: "engine / ceiling", Value: 0.44, Rounds: []float64{0.42, 0.44, 0.46}, Budget: 0.5},
			{Key: "more", Text: "CPU <of> more", Value: 1.5, Rounds: []float64{1.5}, Budget: 2, Lower: true},
			{Key: "late", Text: "latency", Unit: "ms", Value: 3, Rounds: []float64{3}},
		},
	}}}
	var out bytes.Buffer
	if err := rep.print(&out, map[string]float64{"filter/engine": 0.4, "more": 1.2}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"end to end/s", "p99.9 ms", "CPU s/1,000", "engine / ceiling = 0.44, budget ≥ 0.5 MISSED, kept 0.4: +10 %, better (rounds: 0.42 0.44 0.46)",
		"budget ≤ 2, kept 1.2: +25 %, worse", "latency = 3 ms\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, &out)
		}
	}

	page := "# P\n"
	for _, name := range []string{"machine", "ratios", "tables"} {
		page += "<!-- results: " + name + " -->\nold\n<!-- end of results: " + name + " -->\nkept\n"
	}
	js, _ := json.Marshal(rep)
	_ = os.Mkdir(at("images"), 0o755)
	for name, content := range map[string]string{"performance.md": page, "ratios.json": `{"other": 7}`, "r.json": string(js)} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := run(t.Context(), []string{"-from", at("r.json"), "-kept", at("ratios.json"), "-publish", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, _ := os.ReadFile(at(name))
		return string(b)
	}
	md := read("performance.md")
	if strings.Contains(md, "old") || strings.Count(md, "kept") != 3 || !strings.Contains(md, "| engine / ceiling | 0.44 | ≥ 0.5, **missed** | 3: 0.42 to 0.46 |") {
		t.Error(md)
	}
	if kept, err := readKept(at("ratios.json")); err != nil || !maps.Equal(kept, map[string]float64{"other": 7, "filter/engine": 0.44, "more": 1.5}) {
		t.Errorf("kept %v, %v", kept, err)
	}
	if err := xml.Unmarshal([]byte(read("images/performance.svg")), new(struct{})); err != nil || !strings.Contains(read("images/performance.svg"), "CPU &lt;of&gt; more") {
		t.Errorf("the picture: %v\n%s", err, read("images/performance.svg"))
	}
}

func TestTimes(t *testing.T) {
	var ns []int64
	for i := range int64(1000) {
		ns = append(ns, (1000-i)*1e6)
	}
	if got, want := timesOf(ns), (times{500, 900, 990, 999, 1000}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := timesOf(nil); got != (times{}) {
		t.Errorf("nothing measured gives %v", got)
	}
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("median %v", m)
	}
	if m := median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median %v", m)
	}
}

func TestBody(t *testing.T) {
	b := newBody(256)
	setNumber(b, 1234567, 1000)
	if len(b) != 256 || !json.Valid(b) {
		t.Fatalf("not 256 bytes of JSON: %s", b)
	}
	if !bytes.Contains(b, []byte(`"kind":"k00567"`)) {
		t.Errorf("the kind is not filled in: %s", b)
	}
	if n, ok := number(b); !ok || n != 1234567 {
		t.Errorf("got %d, %v", n, ok)
	}
	for _, bad := range []string{"", "{}", strings.ToUpper(string(b)), string(b[:100])} {
		if _, ok := number([]byte(bad)); ok {
			t.Errorf("%q passes for an event", bad)
		}
	}
}
