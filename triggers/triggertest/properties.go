package triggertest

import (
	"bytes"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
)

// HugeSize is the length of a huge payload.
const HugeSize = 20 << 20

// sameKey: a call that is repeated has the key it had, and no other call has it.
func (s Suite) sameKey(t *testing.T) {
	f, v := s.function(t, s.Key)
	var got []string
	for i, key := range []string{"one", "one", "two"} {
		c := NewCall("event")
		c.Key, c.Attempt = key, 1+i%2
		res, err := s.invoke(t, t.Context(), f, v, c)
		if err != nil || len(res.Output) == 0 {
			t.Fatalf("%q, %v", res.Output, err)
		}
		got = append(got, string(res.Output))
	}
	if got[0] != got[1] || got[0] == got[2] {
		t.Errorf("a call, its repetition and another call gave %q", got)
	}
}

// payload is a call whose event has JSON of n bytes.
func payload(n int) *triggers.Call {
	c := NewCall("payload-" + strconv.Itoa(n))
	const around = `{"id":1,"value":""}`
	c.Event.Data = []byte(`{"id":1,"value":"` + strings.Repeat("x", n-len(around)) + `"}`)
	return c
}

// arrived is how much of a payload the callee got.
func (s Suite) arrived(t *testing.T, res triggers.Result) int {
	t.Helper()
	if s.Arrived != nil {
		return s.Arrived()
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(res.Output)))
	if err != nil {
		t.Errorf("the output is no length: %v", err)
	}
	return n
}

func (s Suite) hugeInput(t *testing.T) {
	f, v := s.function(t, s.Length)
	n := HugeSize
	if s.Most > 0 {
		n = s.Most
		if _, err := s.invoke(t, t.Context(), f, v, payload(HugeSize)); err == nil || !permanent(err) || len(err.Error()) > 1<<10 {
			t.Errorf("%d bytes: error %.200v, want a permanent one", HugeSize, err)
		}
	}
	for _, n := range []int{n, 100} {
		res, err := s.invoke(t, t.Context(), f, v, payload(n))
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		// Mails have headers and wrap lines.
		if got := s.arrived(t, res); got < n || got > n*11/10+1<<10 {
			t.Errorf("%d of %d bytes arrived", got, n)
		}
	}
}

func (s Suite) hugeOutput(t *testing.T) {
	n := HugeSize
	if s.Most > 0 {
		n = s.Most
	}
	t.Run("call", func(t *testing.T) {
		f, v := s.function(t, s.Huge)
		for range 2 { // the second finds what the first left
			res, err := s.invoke(t, t.Context(), f, v, payload(n))
			switch {
			case err != nil && (permanent(err) && triggers.ClassOf(err) == triggers.InputError || len(err.Error()) > 1<<10):
				t.Errorf("error %.200v, want one of the function", err)
			case err == nil && !res.Truncated:
				t.Errorf("%d bytes are not marked as cut", len(res.Output))
			}
		}
	})
	s.works(t)
}

// works makes a call that must succeed.
func (s Suite) works(t *testing.T) {
	t.Run("next", func(t *testing.T) {
		f, v := s.function(t, s.OK)
		if _, err := s.invoke(t, t.Context(), f, v, NewCall("next")); err != nil {
			t.Error(err)
		}
	})
}

func (s Suite) invalidText(t *testing.T) {
	for name, change := range map[string]func(*bus.Event){
		"in JSON": func(ev *bus.Event) { ev.Data = []byte("{\"id\":1,\"value\":\"a\xff\xed\xa0\x80b\"}") },
		"in text": func(ev *bus.Event) { ev.Data, ev.DataContentType = []byte("a\xffb"), "text/plain" },
		"bytes": func(ev *bus.Event) {
			ev.Data, ev.DataContentType = []byte{0, 0xff, 0xfe, '\n', 0}, "application/octet-stream"
		},
		"in attributes": func(ev *bus.Event) { ev.Subject, ev.Type = "a\xffb", "t\xff" },
	} {
		t.Run(name, func(t *testing.T) {
			f, v := s.function(t, s.Text)
			c := NewCall("k")
			change(c.Event)
			res, err := s.invoke(t, t.Context(), f, v, c)
			if err != nil && !permanent(err) {
				t.Errorf("error %v would be repeated in vain", err)
			}
			if bus.IsJSON(res.ContentType) && len(res.Output) > 0 && !bus.ValidJSON(res.Output) {
				t.Errorf("%q is no %s", res.Output, res.ContentType)
			}
		})
	}
	s.works(t)
}

func (s Suite) crashes(t *testing.T) {
	for _, step := range Steps() {
		config, ok := s.Crash[step.Name]
		if s.Server != nil || !ok && step.Name == BetweenCalls {
			continue
		}
		t.Run(step.Name, func(t *testing.T) {
			f, v := s.function(t, config)
			if _, err := s.invoke(t, t.Context(), f, v, payload(1<<20)); err == nil || permanent(err) {
				t.Errorf("error %v, want one that may be retried", err)
			}
		})
		s.works(t)
	}
	if s.Server != nil {
		s.cuts(t)
	}
}

// cuts ends the connection of a call after each part of the conversation.
func (s Suite) cuts(t *testing.T) {
	p := newCutter(t, s.Addr)
	config := s.Server(p.addr)
	call := func(t *testing.T, f triggers.Function, v *Values) error {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience/2)
		defer cancel()
		_, err := s.invoke(t, ctx, f, v, payload(64<<10))
		if err != nil && (permanent(err) || ctx.Err() != nil) {
			t.Errorf("error %v, want one at once that may be retried", err)
		}
		return err
	}
	// works calls until it succeeds: a connection that is made again may need a
	// moment, but fails in no other way.
	works := func(t *testing.T, f triggers.Function, v *Values) {
		t.Helper()
		p.cut(-1, -1)
		eventually(t, "no call works any more", func() bool { return call(t, f, v) == nil || t.Failed() })
	}
	var sent, got int64
	t.Run("whole", func(t *testing.T) {
		f, v := s.function(t, config)
		works(t, f, v)
		sent, got = p.passed()
	})
	if sent < 64<<10 || got == 0 {
		t.Fatalf("%d bytes sent, %d received: the call does not use the connection", sent, got)
	}
	for _, c := range []struct {
		step      string
		sent, got int64 // how much passes before the end; -1 for all
	}{
		{BeforeReading, 0, -1},
		{WhileReading + ", the first byte", 1, -1},
		{WhileReading + ", a hundred bytes", 100, -1},
		{WhileReading + ", half", sent / 2, -1},
		{WhileReading + ", all but one", sent - 1, -1},
		{AfterReading, -1, 0},
		{WhileWriting + ", the first byte", -1, 1},
		{WhileWriting + ", half", -1, got / 2},
		{WhileWriting + ", all but one", -1, got - 1},
		{AfterWriting, -1, got},
	} {
		t.Run(c.step, func(t *testing.T) {
			f, v := s.function(t, config)
			p.cut(c.sent, c.got)
			// It may have succeeded where enough was said.
			if err := call(t, f, v); err == nil && c.sent >= 0 && c.sent <= sent/2 {
				t.Error("the call succeeded although the server did not get it")
			}
			works(t, f, v)
		})
	}
	t.Run(BetweenCalls, func(t *testing.T) {
		f, v := s.function(t, config)
		for range 3 {
			works(t, f, v)
			p.hangUp()
		}
		works(t, f, v)
	})
}

// cutter passes connections on to a server, until it ends them.
type cutter struct {
	addr string
	ln   net.Listener
	work sync.WaitGroup

	mu                sync.Mutex
	conns             map[net.Conn]bool
	sent, got         int64 // passed on since the last cut
	mostSent, mostGot int64 // of a connection; -1 for all
}

func newCutter(t *testing.T, server string) *cutter {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: ln.Addr().String(), ln: ln, conns: map[net.Conn]bool{}, mostSent: -1, mostGot: -1}
	c.work.Go(func() {
		for {
			from, err := ln.Accept()
			if err != nil {
				return
			}
			to, err := (&net.Dialer{}).Dial("tcp", server)
			if err != nil {
				_ = from.Close()
				continue
			}
			c.mu.Lock()
			mostSent, mostGot := c.mostSent, c.mostGot
			c.conns[from], c.conns[to] = true, true
			c.mu.Unlock()
			end := func() {
				_, _ = from.Close(), to.Close()
				c.mu.Lock()
				delete(c.conns, from)
				delete(c.conns, to)
				c.mu.Unlock()
			}
			c.work.Go(func() { c.pass(to, from, mostSent, &c.sent); end() })
			c.work.Go(func() { c.pass(from, to, mostGot, &c.got); end() })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		c.hangUp()
		c.work.Wait()
	})
	return c
}

// pass copies most bytes, all when it is negative, and counts them.
func (c *cutter) pass(to io.Writer, from io.Reader, most int64, count *int64) {
	for b := make([]byte, 4096); most != 0; {
		if most > 0 {
			b = b[:min(int64(len(b)), most)]
		}
		n, err := from.Read(b)
		if n > 0 {
			c.mu.Lock()
			*count += int64(n)
			c.mu.Unlock()
			if most > 0 {
				most -= int64(n)
			}
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// cut ends the connections there are, and says how much the next ones pass on.
func (c *cutter) cut(sent, got int64) {
	c.mu.Lock()
	c.mostSent, c.mostGot, c.sent, c.got = sent, got, 0, 0
	c.mu.Unlock()
	c.hangUp()
}

// passed is what was passed on since the last cut.
func (c *cutter) passed() (sent, got int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sent, c.got
}

func (c *cutter) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		_ = conn.Close()
	}
}
