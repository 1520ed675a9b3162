// Package email owns the function kind `email`: it sends a mail by SMTP. It
// must not know queues, retries or sensors; it only tells failures apart.
package email

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	_ "embed" // for the example
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/textproto"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/wneessen/go-mail"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// Config is the config of an `email` function.
type Config struct {
	Host     string             `yaml:"host" required:"true" doc:"Name or address of the SMTP server." example:"smtp.example.com"`
	Port     int                `yaml:"port" min:"1" max:"65535" doc:"Its port; default 587, 465 with tls: implicit, 25 with tls: none."`
	TLS      TLS                `yaml:"tls" short:"mode" doc:"How the connection is encrypted; the mode alone may stand for it." example:"implicit"`
	Username specs.TextOrSecret `yaml:"username" doc:"Name to log in with: text or a secret. It is sent over encrypted connections only, and to this machine."`
	Password *specs.SecretRef   `yaml:"password" doc:"Password to log in with."`
	From     specs.Text         `yaml:"from" required:"true" doc:"Sender, one address." example:"Shop <shop@example.com>"`
	To       []specs.Text       `yaml:"to" doc:"Recipients; each is an address or several separated by commas." example:"['${ data.customer.email }']"`
	CC       []specs.Text       `yaml:"cc" doc:"Recipients of copies."`
	BCC      []specs.Text       `yaml:"bcc" doc:"Recipients of copies whom the others do not see."`
	ReplyTo  specs.Text         `yaml:"replyTo" doc:"Where answers go, one address; default: to the sender."`
	Subject  specs.Text         `yaml:"subject" required:"true" doc:"Subject, one line."`
	Body     specs.Text         `yaml:"body" doc:"Text of the mail; default: the trigger's input if there is one, else the data of the event, unless there is html."`
	HTML     specs.Text         `yaml:"html" doc:"The mail as HTML, beside or instead of body. Values of expressions are put in as they are: what comes from others belongs into body."`
}

// TLS says how the connection is encrypted.
type TLS struct {
	Mode         string `yaml:"mode" enum:"starttls,implicit,none" doc:"With starttls (default) the connection begins in plain text and must be encrypted before anything is told, with implicit it is encrypted from the beginning, with none it is not."`
	outbound.TLS `yaml:",inline"`
}

const (
	modeStartTLS = "starttls"
	modeImplicit = "implicit"
	modeNone     = "none"

	// longest is how long a call takes that has no timeout.
	longest = 10 * time.Minute
	// maxSubject is the longest subject, in bytes.
	maxSubject = 900
)

//go:embed example.yaml
var example string

// Factory returns the kind `email`.
func Factory() triggers.Factory {
	return triggers.Factory{
		Type: specs.Type{
			Name: "email",
			Doc:  "Sends a mail by SMTP.",
			New:  func() any { return &Config{TLS: TLS{Mode: modeStartTLS}} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			return &function{cfg: config.(*Config), dir: env.Dir, secret: env.Secret}, nil
		},
		Check: func(config any, dir string, ck *specs.Checker) { config.(*Config).TLS.Check(ck, "tls", dir) },
	}
}

type function struct {
	cfg    *Config
	dir    string
	secret func(specs.SecretRef) (string, error)
}

// Invoke sends the mail over a connection of its own. It is a success when the
// server has accepted the mail for all recipients.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	msg, err := f.message(c)
	if err != nil {
		return triggers.Result{}, err
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(longest)
	}
	var conn net.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	// The end of ctx comes first, so that it is what failed.
	client, err := f.client(c, max(time.Until(deadline), 0)+time.Second, func(raw net.Conn) {
		conn = raw
		context.AfterFunc(ctx, func() { _ = raw.Close() }) // the library only knows of a time
	})
	if err != nil {
		return triggers.Result{}, err
	}
	err = client.DialAndSendWithContext(ctx, msg)
	if msg.IsDelivered() { // however the goodbye went
		out, err := json.Marshal(map[string]string{"messageId": msg.GetMessageID()})
		status := outbound.Clip(msg.ServerResponse())
		if status == "" {
			status = "accepted"
		}
		return triggers.Result{Output: out, ContentType: "application/json", Status: status}, err
	}
	return triggers.Result{}, f.failure(ctx, err)
}

func (f *function) label() string { return f.cfg.Host + ":" + strconv.Itoa(f.cfg.port()) }

func (c *Config) port() int {
	switch {
	case c.Port > 0:
		return c.Port
	case c.TLS.Mode == modeImplicit:
		return 465
	case c.TLS.Mode == modeNone:
		return 25
	}
	return 587
}

// client is the client for one mail. opened gets the connection, which the
// library does not close after every failure.
func (f *function) client(c *triggers.Call, timeout time.Duration, opened func(net.Conn)) (*mail.Client, error) {
	cfg, err := f.cfg.TLS.Config(f.dir, f.secret)
	if err != nil {
		return nil, err
	}
	if cfg.ServerName == "" {
		cfg.ServerName = f.cfg.Host
	}
	policy := mail.NoTLS
	if f.cfg.TLS.Mode == "" || f.cfg.TLS.Mode == modeStartTLS {
		policy = mail.TLSMandatory
	}
	o := []mail.Option{
		mail.WithPort(f.cfg.port()), mail.WithTLSPolicy(policy), mail.WithTLSConfig(cfg), mail.WithTimeout(timeout), mail.WithoutNoop(),
		mail.WithDialContextFunc(func(ctx context.Context, network, addr string) (net.Conn, error) {
			raw, err := (&net.Dialer{}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			opened(raw)
			if f.cfg.TLS.Mode != modeImplicit {
				return raw, nil
			}
			conn := tls.Client(raw, cfg)
			return conn, conn.HandshakeContext(ctx)
		}),
	}
	if f.cfg.Password != nil {
		user, err := c.Values.TextOrSecret(f.cfg.Username)
		if err != nil {
			return nil, err
		}
		password, err := c.Values.Secret(*f.cfg.Password)
		if err != nil {
			return nil, err
		}
		o = append(o, mail.WithUsername(user), mail.WithPassword(password), mail.WithOpportunisticSMTPAuth(
			mail.SMTPAuthSCRAMSHA256, mail.SMTPAuthSCRAMSHA1, mail.SMTPAuthPlain, mail.SMTPAuthLogin, mail.SMTPAuthCramMD5))
	}
	client, err := mail.NewClient(f.cfg.Host, o...)
	if err != nil {
		return nil, triggers.Permanentf("%s: %w", f.label(), err)
	}
	return client, nil
}

// message is the mail of one call. Nothing of it can become a header that was
// not meant: addresses are parsed, the subject is one line.
func (f *function) message(c *triggers.Call) (*mail.Msg, error) {
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	from, err := f.address(c, "from", f.cfg.From)
	if err != nil {
		return nil, err
	}
	msg.FromMailAddress(from)
	if f.cfg.ReplyTo.Value != "" {
		reply, err := f.address(c, "replyTo", f.cfg.ReplyTo)
		if err != nil {
			return nil, err
		}
		msg.ReplyToMailAddress(reply)
	}
	n := 0
	for _, to := range []struct {
		field string
		list  []specs.Text
		set   func(...*netmail.Address)
	}{{"to", f.cfg.To, msg.ToMailAddress}, {"cc", f.cfg.CC, msg.CcMailAddress}, {"bcc", f.cfg.BCC, msg.BccMailAddress}} {
		list, err := f.addresses(c, to.field, to.list)
		if err != nil {
			return nil, err
		}
		if n += len(list); len(list) > 0 {
			to.set(list...)
		}
	}
	if n == 0 {
		return nil, triggers.Errorf(triggers.InputError, "the mail has no recipients")
	}
	subject, err := c.Values.Text(f.cfg.Subject)
	switch {
	case err != nil:
		return nil, err
	case strings.ContainsFunc(subject, unicode.IsControl):
		return nil, triggers.Errorf(triggers.InputError, "subject has line breaks or control characters")
	case len(subject) > maxSubject:
		return nil, triggers.Errorf(triggers.InputError, "subject has %d bytes, and %d are the most", len(subject), maxSubject)
	}
	msg.Subject(strings.ToValidUTF8(subject, "\uFFFD"))
	if err := f.body(msg, c); err != nil {
		return nil, err
	}
	msg.SetDate()
	// No machine should answer this one.
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	if c.Key == "" {
		msg.SetMessageID()
		return msg, nil
	}
	// The same for every repetition, so that mail systems that look at it show
	// one mail.
	sum := sha256.Sum256([]byte(c.Key))
	domain := "localhost"
	if _, d, ok := strings.Cut(from.Address, "@"); ok {
		domain = d
	}
	msg.SetMessageIDWithValue(hex.EncodeToString(sum[:16]) + "@" + domain)
	return msg, nil
}

// address is one address.
func (f *function) address(c *triggers.Call, field string, t specs.Text) (*netmail.Address, error) {
	list, err := f.addresses(c, field, []specs.Text{t})
	if err == nil && len(list) != 1 {
		err = triggers.Errorf(triggers.InputError, "%s has %d addresses, not one", field, len(list))
	}
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// addresses are those of rendered texts; empty ones have none.
func (f *function) addresses(c *triggers.Call, field string, texts []specs.Text) (all []*netmail.Address, err error) {
	for _, t := range texts {
		s, err := c.Values.Text(t)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(s) == "" {
			continue
		}
		list, err := netmail.ParseAddressList(s)
		if err != nil || strings.ContainsFunc(s, unicode.IsControl) {
			return nil, triggers.Errorf(triggers.InputError, "%s: %q is no address of mail", field, outbound.Clip(s))
		}
		all = append(all, list...)
	}
	return all, nil
}

// body fills in what the mail says.
func (f *function) body(msg *mail.Msg, c *triggers.Call) error {
	text, err := c.Values.Text(f.cfg.Body)
	if err != nil {
		return err
	}
	html, err := c.Values.Text(f.cfg.HTML)
	if err != nil {
		return err
	}
	if text == "" && html == "" {
		if text, _, err = c.Readable(); err != nil {
			return err
		}
	}
	text, html = strings.ToValidUTF8(text, "\uFFFD"), strings.ToValidUTF8(html, "\uFFFD")
	switch {
	case html == "":
		msg.SetBodyString(mail.TypeTextPlain, text)
	case text == "":
		msg.SetBodyString(mail.TypeTextHTML, html)
	default:
		msg.SetBodyString(mail.TypeTextPlain, text)
		msg.AddAlternativeString(mail.TypeTextHTML, html)
	}
	return nil
}

// failure tells whether what failed is worth another call: what the server
// calls permanent (5xx) is not.
func (f *function) failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", f.label(), ctx.Err())
	}
	code, text := 0, outbound.Advised(err).Error()
	if se, ok := errors.AsType[*mail.SendError](err); ok {
		code, text = se.ErrorCode(), se.Error()
		text, _, _ = strings.Cut(text, ", affected message ID")
	} else if te, ok := errors.AsType[*textproto.Error](err); ok {
		code = te.Code
	}
	text = fmt.Sprintf("%s: %s", f.label(), outbound.Clip(text))
	switch {
	case code >= 500:
		return triggers.Permanentf("%s", text)
	case code >= 400:
		return triggers.Errorf(triggers.FunctionError, "%s", text)
	}
	return triggers.Errorf(triggers.SystemError, "%s", text)
}
