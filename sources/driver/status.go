package driver

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/sources"
)

const (
	// maxLogged is how much of one line is logged, in bytes.
	maxLogged = 4 << 10
	// logBurst lines are logged at once, logRate per second over time.
	logBurst = 200
	logRate  = 50
	// moment is how long a driver must run to count as ready when it said
	// nothing so far.
	moment = 250 * time.Millisecond
	// statusEvery is how often the status is renewed at most.
	statusEvery = time.Second
)

// status is what people see of one run of a driver: its log, and whether and
// how it works. It is safe for concurrent use.
type status struct {
	host  sources.Host
	log   *slog.Logger
	token string // kept out of what people see

	isReady atomic.Bool
	// reported is when the progress was told last, in Unix nanoseconds.
	reported atomic.Int64

	mu       sync.Mutex
	base     string
	ended    bool
	refused  int
	why      string // the last message was refused
	trouble  string // the bus takes nothing at the moment
	renewed  time.Time
	timer    *time.Timer
	tokens   float64
	filled   time.Time
	left     int    // lines left out
	lastLine string // of stderr
}

func newStatus(h sources.Host, token string) *status {
	return &status{host: h, log: h.Logger(), token: token, tokens: logBurst, filled: time.Now()}
}

// mask removes the token. Everything else that is secret is masked by the
// logger and where status is shown.
func (s *status) mask(text string) string { return strings.ReplaceAll(text, s.token, "***") }

// started sets what the status says besides troubles.
func (s *status) started(base string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base = base
}

// ready tells that the driver works: it made contact, or ran for a moment.
func (s *status) ready() {
	if s.isReady.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended && s.isReady.CompareAndSwap(false, true) {
		s.host.Ready(s.text())
	}
}

// end tells that the process has ended. Nothing is told to the host after it.
func (s *status) end() (lastLine string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.left > 0 {
		s.log.Warn("lines of the driver were left out of the log", "lines", s.left)
		s.left = 0
	}
	return s.lastLine
}

// text is the detail of the status. The lock is held.
func (s *status) text() string {
	t := s.base
	if s.trouble != "" {
		t += "; it waits: " + s.trouble
	}
	if s.refused > 0 {
		t += fmt.Sprintf("; messages refused: %d, the last one because %s", s.refused, s.why)
	}
	return t
}

// renew shows a change, now or soon. The lock is held.
func (s *status) renew() {
	switch {
	case s.ended || !s.isReady.Load():
	case time.Since(s.renewed) >= statusEvery:
		s.renewed = time.Now()
		s.host.Ready(s.text())
	case s.timer == nil:
		s.timer = time.AfterFunc(statusEvery, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.timer = nil
			s.renew()
		})
	}
}

// stored notes an event that was stored.
func (s *status) stored(ev *bus.Event) {
	now := time.Now()
	last := s.reported.Load()
	if now.UnixNano()-last < int64(100*time.Millisecond) || !s.reported.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	p := sources.Progress{Position: ev.ID}
	if !ev.Time.IsZero() {
		p.Lag = max(now.Sub(ev.Time), 0)
	}
	s.host.Report(p)
}

// stuck tells that the bus does not take events because of err, or that it
// does again.
func (s *status) stuck(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.trouble
	s.trouble = ""
	if err != nil {
		s.trouble = err.Error()
	}
	if s.trouble == was {
		return
	}
	switch {
	case was == "":
		s.log.Warn("an event was not stored; the output of the driver is not read on until it is", "error", err)
	case err == nil:
		s.log.Info("events of the driver are stored again")
	}
	s.renew()
}

// refuse tells that a message was refused for good; begin is its beginning.
func (s *status) refuse(why string, begin []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused++
	s.why = s.mask(why)
	s.renew()
	if s.allowed() {
		s.log.Warn("message of the driver refused", "error", s.why, "message", s.mask(excerpt(begin, 200)))
	}
}

// line logs a line of stderr.
func (s *status) line(line []byte) {
	text := s.mask(excerpt(line, maxLogged))
	if text == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastLine = text
	if s.allowed() {
		s.log.Info("driver", "stderr", text)
	}
}

// allowed reports whether one more line may be logged. The lock is held.
func (s *status) allowed() bool {
	now := time.Now()
	s.tokens = min(logBurst, s.tokens+now.Sub(s.filled).Seconds()*logRate)
	s.filled = now
	if s.tokens < 1 {
		s.left++
		return false
	}
	s.tokens--
	if s.left > 0 {
		s.log.Warn("lines of the driver were left out of the log", "lines", s.left)
		s.left = 0
	}
	return true
}
