package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/sensor-engine/engine/triggers"
)

const (
	// maxText bounds what the words of others take of an error, in bytes.
	maxText = 300
	// maxRetryAfter bounds the delay that others may ask for.
	maxRetryAfter = 24 * time.Hour
)

// Clip makes a text of others fit for an error: one printable line of at most
// about 300 bytes.
func Clip(s string) string {
	s = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool { return !unicode.IsPrint(r) }), " ")
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return strings.TrimSpace(s)
}

// Cause prefers the end of ctx to the symptom it leaves in a connection.
func Cause(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil && !errors.Is(err, e) {
		return fmt.Errorf("%w (%w)", err, e)
	}
	return err
}

// Output puts an answer into a result, at most [triggers.MaxOutput] bytes of it.
func Output(res *triggers.Result, answer []byte) {
	res.Output = answer
	if len(answer) > triggers.MaxOutput {
		res.Output, res.Truncated = answer[:triggers.MaxOutput:triggers.MaxOutput], true
	}
}

// RetryAfter says of a failure that the callee wants to be asked again after a
// delay, which is at least 0 and at most a day.
func RetryAfter(err error, after time.Duration) error {
	return &triggers.RetryAfterError{After: min(max(after, 0), maxRetryAfter), Err: err}
}

// Later is [RetryAfter] with what an HTTP answer says in Retry-After; err itself
// when it says nothing.
func Later(err error, h http.Header) error {
	if after, ok := retryAfter(h.Get("Retry-After"), time.Now()); ok {
		return RetryAfter(err, after)
	}
	return err
}

// retryAfter reads seconds or an HTTP date.
func retryAfter(v string, now time.Time) (time.Duration, bool) {
	v = strings.TrimSpace(v)
	if v == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(v, 10, 64); err == nil {
		return time.Duration(min(n, uint64(maxRetryAfter/time.Second))) * time.Second, true
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0, false
	}
	return at.Sub(now), true
}

// Worthwhile reports whether a failure with this HTTP status may pass.
func Worthwhile(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return code < 300 || code >= 500
}

// StatusText is "200 OK" from our own table: a server's words are not trusted
// to be printable.
func StatusText(code int) string {
	switch code {
	case http.StatusOK:
		return "200 OK"
	case http.StatusAccepted:
		return "202 Accepted"
	case http.StatusNoContent:
		return "204 No Content"
	}
	if s := http.StatusText(code); s != "" {
		return strconv.Itoa(code) + " " + s
	}
	return strconv.Itoa(code)
}
