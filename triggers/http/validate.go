package http

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
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
	c.TLS.Validate(ck, "tls")
	c.validateAllow(ck)
	for _, e := range []struct {
		field  string
		source specs.Expr
	}{{"success", c.Success}, {"retryable", c.Retryable}} {
		if !e.source.IsZero() {
			_, found := expression.Compile(e.source, ck.Path(e.field), expression.ResponseScope(), expression.WantBool)
			ck.Add(found...)
		}
	}
	c.OAuth2.validate(ck, seen[hdrAuth])
}

func (c *Config) validateAllow(ck *specs.Checker) {
	if len(c.Allow) == 0 {
		return
	}
	if !eventChoosesHost(c.URL) {
		ck.Errorf("allow", specs.CodeInvalidValue, "remove it", "no expression decides about the host of url, so every address is allowed")
	}
	for i, a := range c.Allow {
		if _, err := outbound.NewGuard([]string{a}); err != nil {
			ck.Errorf("allow["+strconv.Itoa(i)+"]", specs.CodeInvalidValue, "for example 10.1.0.0/16, hooks.internal or *.svc.local", "%v", err)
		}
	}
}

func (o *OAuth2) validate(ck *specs.Checker, authorization string) {
	if o == nil {
		return
	}
	if authorization != "" {
		ck.Errorf("headers."+authorization, specs.CodeInvalidValue, "remove one of them", "oauth2 sets this header")
	}
	if o.TokenURL != "" {
		if _, err := newTarget(http.MethodPost, o.TokenURL, true); err != nil || strings.Contains(o.TokenURL, "${") {
			ck.Errorf("oauth2.tokenUrl", specs.CodeInvalidValue, "for example https://login.example.com/token", "this is no URL of a token server")
		}
	}
	if _, ok := triggers.Literal(o.ClientID.Text); !ok {
		ck.Errorf("oauth2.clientId", specs.CodeInvalidValue, "text, or {secret: {name, key}}", "clientId has no templates")
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
