package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sensor-engine/engine/test/load"
)

// TestBurstLargerThanLimits: while the function hangs, a burst fills JOBS, so
// that the fold waits, and then EVENTS. From then on producers are told when
// to come again, and the engine stays alive. When the function is back, all
// that was accepted is called for, and the engine takes events again, without
// anybody's doing.
func TestBurstLargerThanLimits(t *testing.T) {
	gate := make(chan struct{})
	release := sync.OnceFunc(func() { close(gate) })
	var mu sync.Mutex
	called := map[string]int{}
	sink, err := load.Listen(func(r load.Request) (int, string) {
		<-gate
		var ev struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(r.Body(), &ev) != nil {
			return http.StatusBadRequest, ""
		}
		mu.Lock()
		defer mu.Unlock()
		called[ev.ID]++
		return http.StatusOK, ""
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	t.Cleanup(release) // before the sink waits for its handlers
	e := newEngine(t, map[string]string{"in.yaml": inSpec(sink.Addr(), "v1")})
	e.args = []string{"--events-max-bytes", "8MiB", "--jobs-max-bytes", "1MiB", "--runs-max-bytes", "1MiB"}
	e.start()

	var next, refused atomic.Int64
	var accepted []string
	stop := make(chan struct{})
	var wg sync.WaitGroup
	pad := strings.Repeat("x", 1000)
	for range 16 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := eventID(int(next.Add(1) - 1))
				status, wait, err := postOnce(e, fmt.Sprintf(`{"id":%q,"total":150,"pad":%q}`, id, pad), id)
				switch {
				case err != nil:
					t.Errorf("%s: %v", id, err)
					return
				case status == http.StatusAccepted:
					mu.Lock()
					accepted = append(accepted, id)
					mu.Unlock()
				case status != http.StatusServiceUnavailable && status != http.StatusTooManyRequests:
					t.Errorf("%s: answered %d, want 503 or 429", id, status)
					return
				default:
					if s, err := strconv.Atoi(wait); err != nil || s < 1 {
						t.Errorf("%s: answered %d with Retry-After %q", id, status, wait)
						return
					}
					refused.Add(1)
					<-time.After(time.Millisecond)
				}
			}
		})
	}
	eventually(t, arriveTimeout, "a hundred events in a row are refused", func() error {
		if n := refused.Load(); n < 100 && !t.Failed() {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
	close(stop)
	wg.Wait()
	if t.Failed() {
		return
	}
	peak := rssPeak(e.proc.Process.Pid)
	t.Logf("%d accepted, %d refused, peak memory %d MiB", len(accepted), refused.Load(), peak>>20)
	if peak > 512<<20 {
		t.Errorf("peak memory %d MiB", peak>>20)
	}
	if status, _, err := get("http://" + e.api + "/healthz"); err != nil || status != http.StatusOK {
		t.Errorf("/healthz: %d, %v: a full log is no reason to be restarted", status, err)
	}

	release()
	from := time.Now()
	eventually(t, arriveTimeout, "every accepted event reached the function", func() error {
		mu.Lock()
		defer mu.Unlock()
		missing := 0
		for _, id := range accepted {
			if called[id] == 0 {
				missing++
			}
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d are missing", missing, len(accepted))
		}
		return nil
	})
	drained := time.Since(from)
	eventually(t, 30*time.Second, "an event is accepted again", func() error {
		id := eventID(int(next.Add(1) - 1))
		status, _, err := postOnce(e, fmt.Sprintf(`{"id":%q,"total":150,"pad":%q}`, id, pad), id)
		if err == nil && status != http.StatusAccepted {
			err = fmt.Errorf("answered %d", status)
		}
		return err
	})
	t.Logf("drained after %v, accepts again after %v", drained, time.Since(from))
	mu.Lock()
	defer mu.Unlock()
	for id, n := range called {
		if n > 1 {
			t.Errorf("%s was called for %d times", id, n)
		}
	}
}

// postOnce posts an event and returns the status and Retry-After.
func postOnce(e *engine, body, id string) (status int, wait string, err error) {
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodPost, e.url("/in"), strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Id", id)
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("Retry-After"), err
}

// rssPeak is the most resident memory a process had, in bytes; 0 where it is
// not told.
func rssPeak(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(v), " kB"))
			return n << 10
		}
	}
	return 0
}
