package nats

import (
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	for s := range strings.SplitSeq(c.URL, ",") {
		if c.URL == "" {
			break // it is required
		}
		if text, hint := checkURL(strings.TrimSpace(s)); text != "" {
			ck.Errorf("url", specs.CodeInvalidValue, hint, "%s", text)
			break
		}
	}
	if s, ok := triggers.Literal(c.Subject); ok && s != "" {
		if err := checkSubject(s); err != nil {
			ck.Errorf("subject", specs.CodeInvalidValue, "for example orders.new", "subject %q %v", s, err)
		}
	}
	if c.Mode == modeRequest && c.JetStream {
		ck.Errorf("jetstream", specs.CodeInvalidValue, "remove one of them", "a request is answered by a service, not stored by a stream")
	}
	seen := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		key := strings.ToLower(name)
		switch {
		case name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' }):
			ck.Errorf("headers."+name, specs.CodeInvalidValue, "letters, digits and '-'", "%q is no header name", name)
		case seen[key] != "":
			ck.Errorf("headers."+name, specs.CodeInvalidValue, "", "header %s is given twice, as %s and %s", key, seen[key], name)
		}
		seen[key] = name
	}
	c.Auth.validate(ck)
	c.TLS.Validate(ck, "tls")
}

func (a *Auth) validate(ck *specs.Checker) {
	if a == nil {
		return
	}
	user := a.User.Secret != nil || a.User.Text.Value != ""
	ways := 0
	for _, given := range []bool{user || a.Password != nil, a.Token != nil, a.NKey != nil, a.Creds != nil} {
		if given {
			ways++
		}
	}
	switch {
	case ways != 1:
		ck.Errorf("auth", specs.CodeInvalidValue, "give user and password, token, nkey or creds", "auth has %d ways to prove who this is, not one", ways)
	case user != (a.Password != nil):
		ck.Errorf("auth", specs.CodeInvalidValue, "give both", "a user needs a password, and a password a user")
	}
	if _, ok := triggers.Literal(a.User.Text); !ok {
		ck.Errorf("auth.user", specs.CodeInvalidValue, "text, or {secret: {name, key}}", "user has no templates")
	}
}

// checkURL tells what is wrong with the address of a server, and what to do.
func checkURL(s string) (text, hint string) {
	u, err := url.Parse(s)
	if !strings.Contains(s, "://") {
		u, err = url.Parse("nats://" + s)
	}
	switch {
	case err != nil || u.Hostname() == "":
		return "this is no address of a NATS server", "for example nats://localhost:4222"
	case !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme):
		return u.Scheme + ":// is no address of a NATS server", "for example nats://" + u.Host
	case u.User != nil:
		return "the address has a user or a token in it", "write them into auth"
	}
	return "", ""
}
