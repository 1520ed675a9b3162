package generic

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sensor-engine/engine/sources/generic/eventing"
)

// maxText bounds what a server's own words take of a reason, in bytes.
const maxText = 300

// hint is what parts of the text of a gRPC error mean, and what to do.
type hint struct {
	part string
	// plain is true when it holds only for connections without TLS.
	plain bool
	text  string
	// detail keeps the part of the error from here on.
	detail string
}

// hints are looked through in order; the texts are those of grpc-go and of
// crypto/tls, and tests hold them against real servers.
var hints = []hint{
	{part: "looked like an HTTP/1.1 header", text: "it speaks HTTP/1.1 and is no gRPC server: check the port in url"},
	{part: "malformed HTTP response", text: "it is no gRPC server: check the port in url"},
	{part: "missing selected ALPN property", text: "it speaks TLS but not HTTP/2, so it is no gRPC server: check the port in url"},
	{part: "no application protocol", text: "it speaks TLS but not HTTP/2, so it is no gRPC server: check the port in url"},
	{part: "unexpected content-type", text: "it answered with a page and not with gRPC: it is a web server or a proxy that does not pass gRPC on", detail: "unexpected content-type"},
	{part: "unexpected HTTP status code", text: "it answered with HTTP and not with gRPC: it is a web server or a proxy that does not pass gRPC on", detail: "unexpected HTTP status code"},
	{part: "first record does not look like a TLS handshake", text: "it speaks no TLS: set insecure: true, or check the port in url"},
	{part: "certificate required", text: "it wants a client certificate: give tls.cert and tls.key"},
	{part: "remote error: tls: ", text: "it refused the TLS connection: check tls.cert and tls.key", detail: "remote error: tls: "},
	{part: "certificate signed by unknown authority", text: "its certificate is of an unknown authority: give that in tls.ca"},
	{part: "x509: certificate is valid for", text: "its certificate is for another name: set tls.serverName", detail: "certificate is valid for"},
	{part: "x509: certificate is not valid for any names", text: "its certificate has no name: set tls.serverName to one it has"},
	{part: "because it doesn't contain any IP SANs", text: "its certificate is for no address: set tls.serverName to a name it has"},
	{part: "certificate has expired or is not yet valid", text: "its certificate has expired or is not valid yet", detail: "current time"},
	{part: "x509: ", text: "its certificate is not accepted", detail: "x509: "},
	{part: "tls: ", text: "the TLS connection failed", detail: "tls: "},
	{part: "connection refused", text: "nothing listens there: start it, or check url"},
	{part: "no such host", text: "its name is not known: check url"},
	{part: "produced zero addresses", text: "its name has no address: check url"},
	{part: "no such file or directory", text: "there is no such socket: start it, or check url"},
	{part: "error reading server preface", plain: true, text: "it closed the connection at once: it may want TLS (insecure: true is set), or is no gRPC server"},
	{part: "keepalive ping failed", text: "it gave no sign of life in keepalive.timeout"},
	{part: "too_many_pings", text: "it forbids to be asked for a sign of life that often: raise keepalive.time, or allow it in the server"},
	{part: "i/o timeout", text: "it cannot be reached: check url and firewalls"},
	{part: "context deadline exceeded", text: "it cannot be reached or does not answer: check url and firewalls"},
	{part: "connection reset by peer", text: "it broke the connection"},
	{part: "error reading from server: EOF", text: "it closed the connection"},
}

// explain says what happened with the server and what to do about it.
func (s *source) explain(err error) error {
	if asRefused(err) != nil || errors.Is(err, context.Canceled) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	at := "server " + s.cfg.URL + ": "
	full := clean(st.Message())
	own := short(full)
	switch st.Code() {
	case codes.Unimplemented:
		if strings.Contains(full, "unexpected HTTP status code") {
			break
		}
		return errors.New(at + "it has no method " + eventing.Eventing_StartEventSource_FullMethodName + ": register the service of generic.proto in it, or check the port in url")
	case codes.Unauthenticated, codes.PermissionDenied:
		if strings.Contains(full, "unexpected HTTP status code") {
			break
		}
		if s.cfg.Auth == nil {
			return fmt.Errorf("%sit wants to know who calls (%s): give auth.bearer", at, own)
		}
		ref := s.cfg.Auth.Bearer
		return fmt.Errorf("%sit refused the token, key %s of Secret %s (%s)", at, ref.Key, ref.Name, own)
	case codes.ResourceExhausted:
		if strings.Contains(own, "larger than max") {
			return &refused{fmt.Sprintf("%sit sent a message larger than maxMessage, %d bytes: raise that, or send less (%s)", at, int64(s.cfg.MaxMessage), own)}
		}
	case codes.Internal:
		if strings.Contains(own, "failed to unmarshal") {
			return &refused{at + "it sent a message that is no generic.Event: it must use generic.proto (" + own + ")"}
		}
	case codes.OutOfRange:
		return fmt.Errorf("%sit cannot go on from the cursor (%s)", at, own)
	case codes.OK:
		return err
	default: // what the text tells
	}
	for _, h := range hints {
		if !strings.Contains(full, h.part) || h.plain && !s.cfg.Insecure {
			continue
		}
		text := at + h.text
		if d := strings.Index(full, h.detail); h.detail != "" && d >= 0 {
			text += " (" + short(strings.TrimRight(full[d:], `"`)) + ")"
		}
		return errors.New(text)
	}
	return fmt.Errorf("%s%s: %s", at, st.Code(), own)
}

// clean makes a server's words fit for a line of text.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// short bounds them.
func short(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}
