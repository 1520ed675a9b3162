package specs

import (
	"slices"
	"strconv"
	"strings"
)

// Auth is exactly one way in which who sends an HTTP request proves who they
// are.
type Auth struct {
	Bearer  *SecretRef `yaml:"bearer" doc:"Token expected as Authorization: Bearer."`
	Basic   *BasicAuth `yaml:"basic" doc:"User name and password expected as Authorization: Basic."`
	HMAC    *HMACAuth  `yaml:"hmac" doc:"Signature over the body as it was sent, expected in a header."`
	APIKeys *APIKeys   `yaml:"apiKeys" doc:"One of several keys, expected in a header."`
}

// BasicAuth is HTTP basic authentication.
type BasicAuth struct {
	Username string    `yaml:"username" required:"true" doc:"User name."`
	Password SecretRef `yaml:"password" required:"true" doc:"Secret that holds the password."`
}

// HMACAuth is a keyed hash over the raw body.
type HMACAuth struct {
	Algorithm string      `yaml:"algorithm" enum:"sha256,sha1,sha512" doc:"Hash function; default sha256."`
	Header    string      `yaml:"header" required:"true" doc:"Header that holds the signature." example:"X-Hub-Signature-256"`
	Secret    SecretRef   `yaml:"secret" required:"true" doc:"Secret that holds the key."`
	Encoding  string      `yaml:"encoding" enum:"hex,base64" doc:"How the signature is written; default hex."`
	Prefix    string      `yaml:"prefix" doc:"What stands before the signature. With a prefix, the header may hold several values separated by commas or spaces, of which one must fit." example:"sha256="`
	Timestamp *SignedTime `yaml:"timestamp" doc:"The time of the request is signed too, and old requests are refused."`
}

// SignedTime is the signed time of a request.
type SignedTime struct {
	Header    string   `yaml:"header" required:"true" doc:"Header that holds the time: Unix seconds or milliseconds, or RFC 3339." example:"X-Slack-Request-Timestamp"`
	Prefix    string   `yaml:"prefix" doc:"What stands before the time, in a header of several values." example:"t="`
	Tolerance Duration `yaml:"tolerance" min:"1s" doc:"Largest difference to the engine's clock; default 5m."`
	Format    string   `yaml:"format" doc:"The text that is signed, with {timestamp} and {body}; default {timestamp}.{body}." example:"v0:{timestamp}:{body}"`
}

// APIKeys are the keys of several clients.
type APIKeys struct {
	Header string `yaml:"header" required:"true" doc:"Header that holds the key." example:"X-API-Key"`
	Secret string `yaml:"secret" required:"true" ref:"Secret" doc:"Name of the Secret whose values are the keys; the key within the Secret is the name of the client." example:"partners"`
}

// Way is the name of the way of authentication, "none" for nil.
func (a *Auth) Way() string {
	switch {
	case a == nil:
		return "none"
	case a.Bearer != nil:
		return "bearer"
	case a.Basic != nil:
		return "basic"
	case a.HMAC != nil:
		return "hmac"
	}
	return "apiKeys"
}

// Validate reports what the types of the fields cannot say; field is where
// the Auth is, below what the checker is about.
func (a *Auth) Validate(ck *Checker, field string) {
	n := 0
	for _, given := range []bool{a.Bearer != nil, a.Basic != nil, a.HMAC != nil, a.APIKeys != nil} {
		if given {
			n++
		}
	}
	if n != 1 {
		ck.Errorf(field, CodeInvalidValue, "leave auth out for no authentication", "needs exactly one of bearer, basic, hmac and apiKeys, has %d", n)
	}
	if a.Basic != nil && strings.Contains(a.Basic.Username, ":") {
		ck.Errorf(field+".basic.username", CodeInvalidValue, "", "a user name of basic authentication cannot have a colon")
	}
	header := func(name, at, example string) {
		if name != "" && !IsToken(name) {
			ck.Errorf(field+at, CodeInvalidValue, "for example "+example, "%q is no header name", name)
		}
	}
	if a.APIKeys != nil {
		header(a.APIKeys.Header, ".apiKeys.header", "X-API-Key")
	}
	h := a.HMAC
	if h == nil {
		return
	}
	header(h.Header, ".hmac.header", "X-Signature")
	t := h.Timestamp
	if t == nil {
		return
	}
	header(t.Header, ".hmac.timestamp.header", "X-Timestamp")
	if f := t.Format; f != "" && (strings.Count(f, "{body}") != 1 || strings.Count(f, "{timestamp}") != 1) {
		ck.Errorf(field+".hmac.timestamp.format", CodeInvalidValue, "for example v0:{timestamp}:{body}", "must have {timestamp} and {body}, each once")
	}
}

// IsToken reports whether s is a token of RFC 9110, which header names and
// methods are.
func IsToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// CheckMethods reports what is wrong with a list of HTTP methods at field.
func CheckMethods(ck *Checker, field string, methods []string) {
	for i, m := range methods {
		at := field + "[" + strconv.Itoa(i) + "]"
		switch {
		case !IsToken(m):
			ck.Errorf(at, CodeInvalidValue, "for example POST", "%q is no HTTP method", m)
		case m != strings.ToUpper(m):
			ck.Errorf(at, CodeInvalidValue, "write "+strings.ToUpper(m), "HTTP methods are in capitals, not %q", m)
		case m == "CONNECT" || m == "TRACE":
			ck.Errorf(at, CodeInvalidValue, "", "the method %s cannot be served", m)
		case slices.Index(methods, m) < i:
			ck.Errorf(at, CodeInvalidValue, "", "the method %s is there twice", m)
		}
	}
}
