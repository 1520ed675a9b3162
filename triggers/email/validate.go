package email

import (
	"fmt"
	"net/mail"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	if strings.ContainsAny(c.Host, ":/@ ") && c.Host != "" && !strings.HasPrefix(c.Host, "[") && strings.Count(c.Host, ":") < 2 {
		ck.Errorf("host", specs.CodeInvalidValue, "the port belongs into port", "%q is no name of a host", c.Host)
	}
	user := c.Username.Secret != nil || c.Username.Text.Value != ""
	if user != (c.Password != nil) {
		ck.Errorf("username", specs.CodeInvalidValue, "give both or neither", "to log in, username and password are needed")
	}
	if _, ok := triggers.Literal(c.Username.Text); !ok {
		ck.Errorf("username", specs.CodeInvalidValue, "text, or {secret: {name, key}}", "username has no templates")
	}
	if len(c.To)+len(c.CC)+len(c.BCC) == 0 {
		ck.Errorf("to", specs.CodeInvalidValue, "give to, cc or bcc", "the mail has no recipients")
	}
	check := func(field string, t specs.Text, single bool) {
		s, ok := triggers.Literal(t)
		if !ok || s == "" {
			return
		}
		if list, err := mail.ParseAddressList(s); err != nil || single && len(list) != 1 {
			ck.Errorf(field, specs.CodeInvalidValue, "for example Shop <shop@example.com>", "%q is no address of mail", s)
		}
	}
	check("from", c.From, true)
	check("replyTo", c.ReplyTo, true)
	for _, l := range []struct {
		field string
		list  []specs.Text
	}{{"to", c.To}, {"cc", c.CC}, {"bcc", c.BCC}} {
		for i, t := range l.list {
			check(fmt.Sprintf("%s[%d]", l.field, i), t, false)
		}
	}
	if s, ok := triggers.Literal(c.Subject); ok && strings.ContainsAny(s, "\r\n") {
		ck.Errorf("subject", specs.CodeInvalidValue, "", "subject has line breaks")
	}
	c.TLS.Validate(ck, "tls")
}
