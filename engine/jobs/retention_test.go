package jobs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/bus/bustest"
	"github.com/sensor-engine/engine/bus/jetstream"
)

// Runs that failed outlive those that succeeded: after the history has dropped
// them they are found by state, by id, by key, and where all runs are asked for.
func TestFailedRunsOutliveTheOthers(t *testing.T) {
	b, err := jetstream.Open(t.Context(), jetstream.Options{Dir: bustest.Dir(t), MinFree: -1, Reserve: -1, Limits: jetstream.Limits{Runs: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	r := newRecorder(b, slog.New(slog.DiscardHandler))
	add := func(id, status string) {
		r.record(&Run{ID: id + "-1", Key: id, Function: "f", Status: status, Attempt: 1, Started: time.Now(), Output: bytes.Repeat([]byte("x"), 16<<10)})
		r.flush()
	}
	for _, status := range []string{StatusRetrying, StatusDead, StatusFailed} {
		add(status, status)
	}
	n := 0
	until(t, "the first to be dropped", func() bool {
		for range 40 {
			n++
			add(fmt.Sprint("ok", n), StatusSucceeded)
		}
		info, err := b.Runs().Info(t.Context())
		return err == nil && info.First > 10
	})
	add("last", StatusDead)
	for _, c := range []struct {
		name string
		f    RunFilter
		want []string // the first runs found
	}{
		{"every failed one", RunFilter{Status: StatusFailed}, []string{"retrying-1", "dead-1", "failed-1", "last-1"}},
		{"by state", RunFilter{Status: StatusDead}, []string{"dead-1", "last-1"}},
		{"by id", RunFilter{ID: "dead-1"}, []string{"dead-1"}},
		{"by key", RunFilter{Key: "failed"}, []string{"failed-1"}},
		{"all", RunFilter{Limit: 10_000}, []string{"retrying-1", "dead-1", "failed-1", "ok"}},
		{"the newest", RunFilter{Limit: 1}, []string{"last-1"}},
	} {
		var got []string
		until(t, c.name, func() bool {
			found, err := ReadRuns(t.Context(), b, c.f)
			if err != nil {
				t.Fatal(err)
			}
			got = nil
			for _, run := range found {
				got = append(got, strings.Fields(run.id())[0])
			}
			return len(got) >= len(c.want)
		})
		if c.name == "all" {
			if n := len(got); got[n-1] != "last-1" || len(slices.Compact(slices.Sorted(slices.Values(got)))) != n {
				t.Errorf("%s: %d runs, some twice, the last %s", c.name, n, got[n-1])
			}
			got = got[:len(c.want)]
			got[3] = got[3][:2]
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
