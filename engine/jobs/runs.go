package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// The states of a run.
const (
	// StatusQueued is that of a submitted call before its first attempt.
	StatusQueued    = "queued"
	StatusSucceeded = "succeeded"
	StatusRetrying  = "retrying"
	StatusDead      = "dead"
	// StatusFailed is that of a call that nobody repeats, because its caller
	// was told.
	StatusFailed = "failed"
)

// MaxRunOutput is how much of an output or log the history keeps, in bytes.
const MaxRunOutput = 16 << 10

// Run is the history of one call. Secrets in it are masked.
type Run struct {
	ID, Key, Function, Sensor, Trigger string
	Attempt, Redrive                   int
	Status                             string
	Spec, Correlation                  string
	EventSeq                           uint64
	EventID, EventType                 string
	Started                            time.Time
	Duration, Queued                   time.Duration
	Next                               time.Time
	Result                             string
	// Input is what it was given instead of an event of the log, as JSON; nil for
	// none.
	Input                  []byte
	Output, Stdout, Stderr []byte
	ContentType            string
	// Truncated is true when not all of Input, Output, Stdout and Stderr is here.
	Truncated bool
	// Error is why it failed, Class whose fault that is and Stacktrace where it
	// happened; empty when it did not.
	Error      string
	Class      triggers.Class
	Stacktrace []string
}

// fill copies what is kept of a call, and masks Input.
func (r *Run) fill(res triggers.Result, masker func([]byte) []byte) {
	r.Result, r.ContentType, r.Truncated = res.Status, res.ContentType, res.Truncated || res.Logs.Truncated
	r.Input = r.keep(r.Input, masker)
	r.Output, r.Stdout, r.Stderr = r.keep(res.Output, masker), r.keep(res.Logs.Stdout, masker), r.keep(res.Logs.Stderr, masker)
}

// fail notes why it failed; text is masked.
func (r *Run) fail(err error, text string) {
	r.Error, r.Class = text, triggers.ClassOf(err)
	if e, ok := errors.AsType[*triggers.Error](err); ok {
		r.Stacktrace = e.Stacktrace
	}
}

// keep masks and cuts an output. Only a little more than what is kept is
// looked at: a secret the first cut goes through is beyond the second.
func (r *Run) keep(b []byte, masker func([]byte) []byte) []byte {
	if len(b) > 2*MaxRunOutput {
		b, r.Truncated = b[:2*MaxRunOutput], true
	}
	b = mask(masker, b)
	if len(b) > MaxRunOutput {
		b, r.Truncated = b[:MaxRunOutput], true
	}
	return b
}

// AppendJSON appends the run as one JSON object: the form of the history, of
// the API and of `engine runs -o json`.
func (r *Run) AppendJSON(b []byte) []byte {
	b = append(b, `{"id":`...)
	b = bus.AppendJSONString(b, r.ID)
	field := func(name, v string) { b = bus.AppendJSONField(b, name, v) }
	field("key", r.Key)
	field("function", r.Function)
	field("sensor", r.Sensor)
	field("trigger", r.Trigger)
	field("status", r.Status)
	b = append(b, `,"attempt":`...)
	b = strconv.AppendInt(b, int64(r.Attempt), 10)
	if r.Redrive > 0 {
		b = append(b, `,"redrive":`...)
		b = strconv.AppendInt(b, int64(r.Redrive), 10)
	}
	field("spec", r.Spec)
	field("correlation", r.Correlation)
	if r.EventSeq > 0 {
		b = append(b, `,"event":{"seq":`...)
		b = strconv.AppendUint(b, r.EventSeq, 10)
		field("id", r.EventID)
		field("type", r.EventType)
		b = append(b, '}')
	}
	b = append(b, `,"started":"`...)
	b = r.Started.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","durationMs":`...)
	b = strconv.AppendFloat(b, float64(r.Duration.Microseconds())/1000, 'f', -1, 64)
	b = append(b, `,"queuedMs":`...)
	b = strconv.AppendFloat(b, float64(r.Queued.Microseconds())/1000, 'f', -1, 64)
	if !r.Next.IsZero() {
		b = append(b, `,"next":"`...)
		b = r.Next.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	value := func(name string, v []byte, isJSON bool) {
		if len(v) == 0 {
			return
		}
		b = append(b, ',', '"')
		b = append(b, name...)
		b = append(b, '"', ':')
		// What was cut is no longer JSON.
		if isJSON && (!r.Truncated || len(v) < MaxRunOutput) && bus.ValidJSON(v) {
			b = appendCompact(b, v)
		} else {
			b = bus.AppendJSONString(b, string(v))
		}
	}
	value("input", r.Input, true)
	field("result", r.Result)
	value("output", r.Output, bus.IsJSON(r.ContentType))
	if len(r.Stdout)+len(r.Stderr) > 0 {
		b = append(b, `,"logs":{"stdout":`...)
		b = appendLines(b, r.Stdout)
		b = append(b, `,"stderr":`...)
		b = appendLines(b, r.Stderr)
		b = append(b, '}')
	}
	if r.Truncated {
		b = append(b, `,"truncated":true`...)
	}
	field("error", r.Error)
	field("class", string(r.Class))
	if len(r.Stacktrace) > 0 {
		b = append(b, `,"stacktrace":[`...)
		for i, line := range r.Stacktrace {
			if i > 0 {
				b = append(b, ',')
			}
			b = bus.AppendJSONString(b, line)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// appendLines appends a log as a list of its lines, null for none.
func appendLines(b, log []byte) []byte {
	if len(log) == 0 {
		return append(b, "null"...)
	}
	b = append(b, '[')
	for i, line := range Lines(log) {
		if i > 0 {
			b = append(b, ',')
		}
		b = bus.AppendJSONString(b, line)
	}
	return append(b, ']')
}

// Lines are the lines of a log without their ends, nil for none.
func Lines(log []byte) []string {
	if len(log) == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(string(log), "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSuffix(line, "\r")
	}
	return lines
}

// appendCompact appends valid JSON on one line: a history block has one run a
// line.
func appendCompact(b, v []byte) []byte {
	for _, c := range v {
		if c == '\n' || c == '\r' { // only possible between tokens
			c = ' '
		}
		b = append(b, c)
	}
	return b
}

// recorder gathers runs and writes them in blocks, one per function, after
// 50 ms or 64 KiB. It has no part in correctness: what cannot be written is
// dropped and counted.
type recorder struct {
	b       bus.Bus
	log     *slog.Logger
	mu      sync.Mutex
	blocks  map[string]*block // by function
	failed  map[string]*block // those of runs that failed, once more
	wake    chan struct{}
	dropped atomic.Uint64
}

type block struct {
	data []byte
	n    int
}

const (
	blockAge  = 50 * time.Millisecond
	blockSize = 64 << 10
)

func newRecorder(b bus.Bus, log *slog.Logger) *recorder {
	return &recorder{b: b, log: log, blocks: map[string]*block{}, failed: map[string]*block{}, wake: make(chan struct{}, 1)}
}

// record adds a run. It never blocks on the bus.
func (r *recorder) record(run *Run) {
	r.mu.Lock()
	idle, full, ok := r.add(r.blocks, run)
	var failed []byte
	n := 0
	if !ok {
		r.mu.Unlock()
		r.dropped.Add(1)
		return
	}
	if failing(run.Status) {
		var more block
		_, more, _ = r.add(r.failed, run)
		failed, n = more.data, more.n
	}
	r.mu.Unlock()
	if full.n > 0 {
		r.write(r.b.Runs(), bus.RunsPrefix, run.Function, full)
	}
	if n > 0 {
		r.write(r.b.FailedRuns(), bus.FailedPrefix, run.Function, block{failed, n})
	}
	if idle {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// failing reports whether a run in this state did not succeed.
func failing(status string) bool {
	return status == StatusFailed || status == StatusRetrying || status == StatusDead
}

// add appends a run to the block of its function. idle is true when it is the
// first of it, full the block when it is to be written, and ok false when there
// is no room, because the bus does not keep up. mu is held.
func (r *recorder) add(blocks map[string]*block, run *Run) (idle bool, full block, ok bool) {
	bl := blocks[run.Function]
	if bl == nil {
		bl = &block{}
		blocks[run.Function] = bl
	}
	if len(bl.data) > 16*blockSize {
		return false, full, false
	}
	idle = bl.n == 0
	bl.data = append(run.AppendJSON(bl.data), '\n')
	bl.n++
	if len(bl.data) >= blockSize {
		full, *bl = *bl, block{}
		return false, full, true
	}
	return idle, full, true
}

// run writes what has gathered, until ctx ends; then it writes the rest.
func (r *recorder) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.flush()
			return
		case <-r.wake:
		}
		timer.Reset(blockAge)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		r.flush()
	}
}

func (r *recorder) flush() {
	r.mu.Lock()
	blocks, failed := r.blocks, r.failed
	r.blocks, r.failed = make(map[string]*block, len(blocks)), make(map[string]*block, len(failed))
	r.mu.Unlock()
	for fn, bl := range blocks {
		if bl.n > 0 {
			r.write(r.b.Runs(), bus.RunsPrefix, fn, *bl)
		}
	}
	for fn, bl := range failed {
		if bl.n > 0 {
			r.write(r.b.FailedRuns(), bus.FailedPrefix, fn, *bl)
		}
	}
}

func (r *recorder) write(log bus.Log, prefix, fn string, bl block) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	rec := bus.Record{Subject: prefix + bus.Token(fn), Data: bl.data}
	err := log.AppendAsync(ctx, rec, func(_ bus.Ack, err error) {
		if err != nil {
			r.dropped.Add(uint64(bl.n))
		}
	})
	if err != nil {
		r.dropped.Add(uint64(bl.n))
	}
}

// StatusOK is what a filter may ask for instead of [StatusSucceeded]. To a
// filter, [StatusFailed] is every failed attempt, repeated or not.
const StatusOK = "ok"

// Statuses are what a filter may ask for, for people.
func Statuses() []string {
	return []string{StatusOK, StatusFailed, StatusRetrying, StatusDead, StatusQueued, StatusSucceeded}
}

// has reports whether a status is what a filter asks for.
func (f *RunFilter) has(status string) bool {
	switch f.Status {
	case "": // that something is queued is told where it is asked for
		return status != StatusQueued || f.Key != "" || f.ID != ""
	case StatusOK:
		return status == StatusSucceeded
	case StatusFailed:
		return failing(status)
	}
	return status == f.Status
}

// RunFilter selects runs; zero fields select all, but those that are queued.
type RunFilter struct {
	Function, Status, ID, Key, Sensor, Trigger string
	// Limit is the most runs returned, the newest; 0 means 100.
	Limit int
}

// StoredRun is one run of the history: its JSON and what is needed to select.
type StoredRun struct {
	Seq  uint64
	JSON json.RawMessage

	stored time.Time // its block
}

// ReadRuns returns the newest runs that match, oldest first, reading back to
// at most 2,000 blocks of the history, and then of what failed before them,
// which is kept for longer. It blocks on the bus.
func ReadRuns(ctx context.Context, b bus.Bus, f RunFilter) ([]StoredRun, error) {
	if f.Limit <= 0 {
		f.Limit = 100
	}
	if failing(f.Status) {
		out, _, _, err := readBack(ctx, b.FailedRuns(), bus.FailedPrefix, f)
		return out, err
	}
	out, oldest, whole, err := readBack(ctx, b.Runs(), bus.RunsPrefix, f)
	if err != nil || len(out) >= f.Limit || f.Status != "" || whole {
		return out, err
	}
	failed, _, _, err := readBack(ctx, b.FailedRuns(), bus.FailedPrefix, f)
	if err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(out))
	for _, r := range out {
		known[r.id()] = true
	}
	var before []StoredRun
	for _, r := range failed { // a block is not stored in both at the same moment
		if (oldest.IsZero() || r.stored.Before(oldest.Add(time.Second))) && !known[r.id()] {
			before = append(before, r)
		}
	}
	out = append(before, out...)
	return out[max(0, len(out)-f.Limit):], nil
}

// id is the id of a run and its state.
func (r *StoredRun) id() string {
	var head struct{ ID, Status string }
	_ = json.Unmarshal(r.JSON, &head) // it was read before
	return head.ID + " " + head.Status
}

// readBack returns the newest matching runs of a log, oldest first, and when
// the oldest block that it looked at was stored; whole tells that the log has
// dropped nothing before it.
func readBack(ctx context.Context, log bus.Log, prefix string, f RunFilter) (out []StoredRun, oldest time.Time, whole bool, err error) {
	filter := prefix + ">"
	if f.Function != "" {
		filter = prefix + bus.Token(f.Function)
	}
	info, err := log.Info(ctx)
	if err != nil || info.Records == 0 {
		return nil, oldest, info.Last == 0, err
	}
	const step = 200
	hi := info.Last + 1
	for tries := 0; hi > info.First && tries < 10 && len(out) < f.Limit; tries++ {
		lo := max(info.First, hi-min(hi, step))
		part, err := readBlocks(ctx, log, filter, lo, hi, f)
		if err != nil {
			return nil, oldest, false, err
		}
		out = append(part, out...)
		hi = lo
	}
	oldest = info.FirstTime
	if hi > info.First {
		if r, err := log.Get(ctx, hi); err == nil {
			oldest = r.Time
		}
	}
	return out[max(0, len(out)-f.Limit):], oldest, hi <= 1, nil
}

// readBlocks returns the matching runs of the blocks in [lo, hi).
func readBlocks(ctx context.Context, log bus.Log, filter string, lo, hi uint64, f RunFilter) ([]StoredRun, error) {
	var out []StoredRun
	for seq := lo; seq < hi; {
		r, err := log.Next(ctx, filter, seq)
		if isNotFound(err) {
			break
		}
		if err != nil {
			return nil, err
		}
		if r.Seq >= hi {
			break
		}
		out = append(out, SplitRuns(r, f)...)
		seq = r.Seq + 1
	}
	return out, nil
}

// SplitRuns returns the matching runs of one history block.
func SplitRuns(r bus.Record, f RunFilter) []StoredRun {
	var out []StoredRun
	for line := range strings.Lines(string(r.Data)) {
		line = strings.TrimSuffix(line, "\n")
		if !f.matches([]byte(line)) {
			continue
		}
		out = append(out, StoredRun{r.Seq, json.RawMessage(line), r.Time})
	}
	return out
}

// matches reports whether a run, as JSON, is one of those selected.
func (f *RunFilter) matches(run []byte) bool {
	var head struct{ ID, Key, Status, Function, Sensor, Trigger string }
	if json.Unmarshal(run, &head) != nil {
		return false
	}
	if !f.has(head.Status) {
		return false
	}
	for _, c := range [...][2]string{
		{f.ID, head.ID}, {f.Key, head.Key}, {f.Function, head.Function}, {f.Sensor, head.Sensor}, {f.Trigger, head.Trigger},
	} {
		if c[0] != "" && c[0] != c[1] {
			return false
		}
	}
	return true
}
