package webhook

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// request is the JSON of a request as expressions see it: method, path,
// params and query (a list where a name occurs more than once), and headers
// in lower case without those that hold credentials.
func (h *handler) request(r *http.Request) []byte {
	b := make([]byte, 0, 512)
	b = appendString(append(b, `{"method":`...), r.Method)
	b = appendString(append(b, `,"path":`...), r.URL.Path)
	b = append(b, `,"params":{`...)
	for i, name := range h.params {
		b = appendMember(b, i, name)
		b = appendString(b, r.PathValue(name))
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
	b = appendString(b, r.Host)
	names := make([]string, 0, len(r.Header))
	for name := range r.Header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		lower := strings.ToLower(name)
		if h.credential(name, lower) {
			continue
		}
		b = appendMember(b, 1, lower)
		b = appendString(b, strings.Join(r.Header[name], ", "))
	}
	return append(b, '}', '}')
}

func appendMember(b []byte, i int, name string) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return append(appendString(b, name), ':')
}

func appendValues(b []byte, values []string) []byte {
	if len(values) == 1 {
		return appendString(b, values[0])
	}
	b = append(b, '[')
	for i, v := range values {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, v)
	}
	return append(b, ']')
}

// credential reports whether a header may hold what lets others in: the log
// must not keep it.
func (h *handler) credential(name, lower string) bool {
	if h.auth != nil && name == h.auth.header && name != "" {
		return true
	}
	for _, part := range [...]string{"authorization", "cookie", "token", "secret", "password", "signature", "credential", "api-key", "apikey", "session"} {
		if strings.Contains(lower, part) {
			return true
		}
	}
	return false
}
