package bus

import (
	"fmt"
	"net/url"
	"strings"
)

// Subjects of the streams. Every token that comes from outside passes
// through [Token].
const (
	EventsPrefix = "engine.events."
	JobsPrefix   = "engine.jobs."
	ParkedPrefix = "engine.parked."
	DLQPrefix    = "engine.dlq."
	RunsPrefix   = "engine.runs."
	FailedPrefix = "engine.failed."
)

// Pseudo event sources of events that no EventSource produced.
const (
	// SourceEmit is for events ingested by hand or API, by type.
	SourceEmit = "_emit"
	// SourcePublish is for events of `publish` functions, by sensor.
	SourcePublish = "_publish"
	// SourceFunction is that of the results of functions; their names are the
	// functions'.
	SourceFunction = "_function"
)

const upperhex = "0123456789ABCDEF"

func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// Token percent-encodes s for use as one subject token or key token: letters,
// digits, '-' and '_' stay, every other byte becomes %XX. The empty string
// becomes "%". [Untoken] reverses it.
func Token(s string) string {
	n := 0
	for i := 0; i < len(s); i++ {
		if !plain(s[i]) {
			n++
		}
	}
	if n == 0 {
		if s == "" {
			return "%"
		}
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2*n)
	for i := 0; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(upperhex[c>>4])
			b.WriteByte(upperhex[c&15])
		}
	}
	return b.String()
}

// Untoken decodes what [Token] made. What is no valid encoding is an error.
func Untoken(t string) (string, error) {
	if t == "%" {
		return "", nil
	}
	if strings.IndexByte(t, '%') < 0 {
		return t, nil
	}
	s, err := url.PathUnescape(t)
	if err != nil {
		return "", fmt.Errorf("subject token %q: %w", t, err)
	}
	return s, nil
}

// EventSubject is the subject of an event of this EventSource and event name.
func EventSubject(source, event string) string {
	return EventsPrefix + Token(source) + "." + Token(event)
}
