package outbound

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sensor-engine/engine/triggers"
)

func TestRetryAfter(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) string { return now.Add(d).UTC().Format(http.TimeFormat) }
	for v, want := range map[string]time.Duration{
		"3": 3 * time.Second, " 0 ": 0, "99999999999999": maxRetryAfter, at(time.Minute): time.Minute,
		at(-time.Hour): 0, at(10 * maxRetryAfter): maxRetryAfter,
		"": -1, "soon": -1, "-3": -1, "1.5": -1,
	} {
		failure := errors.New("busy")
		err := Later(failure, http.Header{"Retry-After": {v}})
		got := time.Duration(-1)
		if later, ok := errors.AsType[*triggers.RetryAfterError](err); ok {
			got = later.After
		}
		// A date has seconds, and the clock goes on.
		if got > want || got < want-5*time.Second || want < 0 && got >= 0 || !errors.Is(err, failure) {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
	if later, _ := errors.AsType[*triggers.RetryAfterError](RetryAfter(errors.New("x"), -time.Second)); later.After != 0 {
		t.Error(later.After)
	}
}

func TestClip(t *testing.T) {
	for s, want := range map[string]string{
		"fine": "fine", " a\r\n\tb\x00c\xff ": "a b c?", "": "", "\n": "", "größe…": "größe…",
		strings.Repeat("ö", 200): strings.Repeat("ö", 150) + "…",
	} {
		if got := Clip(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}

func TestOutput(t *testing.T) {
	for n, truncated := range map[int]bool{0: false, triggers.MaxOutput: false, triggers.MaxOutput + 1: true} {
		var res triggers.Result
		if Output(&res, make([]byte, n)); len(res.Output) != min(n, triggers.MaxOutput) || res.Truncated != truncated {
			t.Errorf("%d: %d bytes, %v", n, len(res.Output), res.Truncated)
		}
	}
}

func TestCause(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	broken := errors.New("the connection was closed")
	if err := Cause(ctx, broken); !errors.Is(err, broken) || errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	cancel()
	if err := Cause(ctx, broken); !errors.Is(err, broken) || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := Cause(ctx, context.Canceled); err.Error() != context.Canceled.Error() {
		t.Error(err)
	}
}
