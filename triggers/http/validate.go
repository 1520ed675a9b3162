package http

import (
	"net/http"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// owned are the headers that describe the connection or the body's framing.
const owned = " Connection Content-Length Expect Keep-Alive Proxy-Connection Te Trailer Transfer-Encoding Upgrade "

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if raw, ok := triggers.Constant(c.URL); ok && raw != "" {
		if _, err := newTarget(c.Method, raw, true); err != nil {
			ck.Errorf("url", specs.CodeInvalidValue, "for example https://example.com/hook", "%v", err)
		}
	}
	seen := map[string]string{}
	for _, name := range sortedKeys(c.Headers) {
		field, key := "headers."+name, http.CanonicalHeaderKey(name)
		value, _ := triggers.Constant(c.Headers[name])
		switch {
		case !validName(name):
			ck.Errorf(field, specs.CodeInvalidValue, "letters, digits and '-'", "%q is no header name", name)
		case strings.Contains(owned, " "+key+" "):
			ck.Errorf(field, specs.CodeInvalidValue, "remove it", "header %s is set by the connection itself", key)
		case seen[key] != "":
			ck.Errorf(field, specs.CodeInvalidValue, "names of headers are case-insensitive", "header %s is given twice, as %s and %s", key, seen[key], name)
		case !validValue(value):
			ck.Errorf(field, specs.CodeInvalidValue, "", "the value of header %s has control characters", key)
		}
		seen[key] = name
	}
	if t := c.TLS; t != nil && (t.Cert == "") != (t.Key == "") {
		ck.Errorf("tls", specs.CodeInvalidValue, "give both or neither", "a client certificate needs cert and key")
	}
}

// validName reports whether s is a token of RFC 9110.
func validName(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}
