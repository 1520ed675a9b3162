package bus

// EscapeHeader percent-encodes an attribute for a `ce-*` header as the HTTP
// and NATS bindings of CloudEvents ask: controls, space, '"', '%' and
// everything outside ASCII. A string without these is returned as it is.
func EscapeHeader(s string) string { return escape(s) }

// UnescapeHeader reverses [EscapeHeader]; a '%' that starts no valid escape
// stays.
func UnescapeHeader(s string) string { return unescape(s) }
