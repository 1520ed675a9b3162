package ingress

import (
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// AppendRequest appends the JSON of a request as expressions see it: method,
// path, params (the values of the path's parameters of these names) and query
// (a list where a name occurs more than once), and headers in lower case
// without those that hold credentials. auth may be nil.
func AppendRequest(b []byte, r *http.Request, params []string, auth *Auth) []byte {
	b = AppendString(append(b, `{"method":`...), r.Method)
	b = AppendString(append(b, `,"path":`...), r.URL.Path)
	b = append(b, `,"params":{`...)
	for i, name := range params {
		b = appendMember(b, i, name)
		b = AppendString(b, r.PathValue(name))
	}
	b = append(b, `},"query":{`...)
	if r.URL.RawQuery != "" {
		query := r.URL.Query()
		for i, name := range slices.Sorted(maps.Keys(query)) {
			b = appendMember(b, i, name)
			b = appendValues(b, query[name])
		}
	}
	b = append(b, `},"headers":{`...)
	b = appendMember(b, 0, "host")
	b = AppendString(b, r.Host)
	for lower, value := range PlainHeaders(r, auth) {
		b = appendMember(b, 1, lower)
		b = AppendString(b, value)
	}
	return append(b, '}', '}')
}

// PlainHeaders yields the headers that hold no credentials, in the order of
// their names, which are in small letters. auth may be nil.
func PlainHeaders(r *http.Request, auth *Auth) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		names := make([]string, 0, len(r.Header))
		for name := range r.Header {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			lower := strings.ToLower(name)
			if !credential(name, lower, auth) && !yield(lower, strings.Join(r.Header[name], ", ")) {
				return
			}
		}
	}
}

func appendMember(b []byte, i int, name string) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return append(AppendString(b, name), ':')
}

func appendValues(b []byte, values []string) []byte {
	if len(values) == 1 {
		return AppendString(b, values[0])
	}
	b = append(b, '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = AppendString(b, v)
	}
	return append(b, ']')
}

// credential reports whether a header may hold what lets others in: neither
// the log nor a function may get it.
func credential(name, lower string, auth *Auth) bool {
	if auth != nil && name == auth.header && name != "" {
		return true
	}
	for _, part := range [...]string{"authorization", "cookie", "token", "secret", "password", "signature", "credential", "api-key", "apikey", "session"} {
		if strings.Contains(lower, part) {
			return true
		}
	}
	return false
}

const hexDigits = "0123456789abcdef"

// AppendString appends s as a JSON string; bytes that are no UTF-8 become
// U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r) // an invalid byte becomes U+FFFD
			i += size
			continue
		}
		i++
	}
	return append(dst, '"')
}
