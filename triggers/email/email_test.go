package email

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// server is an SMTP server that keeps what it gets. Recipients decide about
// its answers: 450@… and 550@… are refused with that code, slow@… waits.
type server struct {
	addr string
	port int

	mu    sync.Mutex
	mails []received
	codes map[string]int // answers to parts of a session, for example "data"
	users []string
}

type received struct {
	from string
	to   []string
	data string
}

func (s *server) take() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.mails
	s.mails = nil
	return m
}

// answer is the error the server was told to give.
func (s *server) answer(part string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if code := s.codes[part]; code > 0 {
		return &smtp.SMTPError{Code: code, Message: part + " is not for you"}
	}
	return nil
}

func (s *server) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{server: s, conn: c}, s.answer("hello")
}

type session struct {
	server *server
	conn   *smtp.Conn
	mail   received
}

func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		s.server.mu.Lock()
		s.server.users = append(s.server.users, user)
		s.server.mu.Unlock()
		if user != "shop" || password != "canary-password" {
			return &smtp.SMTPError{Code: 535, Message: "authentication failed"}
		}
		return nil
	}), nil
}

func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.mail.from = from
	return s.server.answer("mail")
}

func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	switch local, _, _ := strings.Cut(to, "@"); local {
	case "450", "550":
		code := 450
		if local == "550" {
			code = 550
		}
		return &smtp.SMTPError{Code: code, Message: "no such user"}
	case "slow":
		_, _ = s.conn.Conn().Read(make([]byte, 1)) // until the client hangs up
	}
	s.mail.to = append(s.mail.to, to)
	return nil
}

func (s *session) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := s.server.answer("data"); err != nil {
		return err
	}
	s.mail.data = string(b)
	s.server.mu.Lock()
	s.server.mails = append(s.server.mails, s.mail)
	s.server.mu.Unlock()
	return nil
}

func (s *session) Reset()        { s.mail = received{} }
func (s *session) Logout() error { return nil }

// serve starts a server that ends with the test.
func serve(t testing.TB, cfg *tls.Config, implicit bool) *server {
	t.Helper()
	s := &server{codes: map[string]int{}}
	srv := smtp.NewServer(s)
	srv.Domain, srv.TLSConfig, srv.AllowInsecureAuth = "test", cfg, cfg == nil
	srv.ErrorLog = quiet{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr, s.port = ln.Addr().String(), ln.Addr().(*net.TCPAddr).Port
	if implicit {
		ln = tls.NewListener(ln, cfg)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return s
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

var secrets = map[string]string{"a/password": "canary-password", "a/wrong": "canary-wrong"}

func (s *server) config(more string) string {
	return fmt.Sprintf("host: 127.0.0.1\nport: %d\n%s", s.port, more)
}

func invoke(t *testing.T, config string, c *triggers.Call, env triggers.Env) (triggers.Result, error) {
	t.Helper()
	f, v := triggertest.Make(t, Factory(), config, secrets, env)
	c.Values = v.Of(c)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return f.Invoke(ctx, c)
}

const plain = "tls: none\nfrom: Shop <shop@example.com>\nsubject: hello\n"

func TestContract(t *testing.T) {
	s := serve(t, nil, false)
	const login = "username: shop\npassword: {name: a, key: password}\n"
	config := func(to string) string {
		return s.config(plain + login + "body: id ${ data.id }\nto: [" + to + "]")
	}
	triggertest.Run(t, triggertest.Suite{
		Factory: Factory(), OK: config("ada@example.com"), Slow: config("slow@example.com"), Permanent: config("550@example.com"), Retryable: config("450@example.com"),
		Key:    config("ada@example.com"),
		Length: s.config(plain + login + "to: [ada@example.com]"),
		Arrived: func() int {
			mails := s.take()
			return len(mails[len(mails)-1].data)
		},
		Text: s.config("tls: none\nfrom: shop@example.com\nsubject: about ${ subject }\nto: [ada@example.com]\n" + login),
		Addr: s.addr,
		Server: func(addr string) string {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("host: %s\nport: %s\n%s%sto: [ada@example.com]", host, port, plain, login)
		},
		Secrets: secrets,
	})
}

// parts reads a mail.
func parts(t *testing.T, data string) (h netmail.Header, bodies map[string]string) {
	t.Helper()
	m, err := netmail.ReadMessage(strings.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	bodies = map[string]string{}
	typ, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(typ, "multipart/") {
		b, err := io.ReadAll(quotedprintable.NewReader(m.Body))
		if err != nil {
			t.Fatal(err)
		}
		bodies[typ] = string(b)
		return m.Header, bodies
	}
	for r := multipart.NewReader(m.Body, params["boundary"]); ; {
		p, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return m.Header, bodies
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(p) // decoded by the reader
		typ, _, _ := strings.Cut(p.Header.Get("Content-Type"), ";")
		bodies[typ] = string(b)
	}
}

func TestMail(t *testing.T) {
	s := serve(t, nil, false)
	config := s.config(`tls: none
from: Größe <shop@example.com>
replyTo: help@example.com
to: ["${ input.to }", '']
cc: [cc@example.com]
bcc: [secret@example.com, other@example.com]
subject: "Größe ${ input.n }"
body: "text ${ input.n }\n.\nend"
html: "<b>${ input.n }</b>"`)
	for range 2 {
		c := triggertest.NewInputCall(map[string]any{"n": int64(1234567890123456789), "to": "Ada <ada@example.com>, bob@example.com"})
		res, err := invoke(t, config, c, triggers.Env{})
		if err != nil || !strings.Contains(string(res.Output), "@example.com") || !strings.Contains(res.Status, "OK") {
			t.Fatalf("%+v, %v", res, err)
		}
	}
	mails := s.take()
	if len(mails) != 2 {
		t.Fatalf("%d mails", len(mails))
	}
	m := mails[0]
	if want := []string{"ada@example.com", "bob@example.com", "cc@example.com", "secret@example.com", "other@example.com"}; m.from != "shop@example.com" || !slices.Equal(m.to, want) {
		t.Errorf("%s to %q", m.from, m.to)
	}
	h, bodies := parts(t, m.data)
	dec := new(mime.WordDecoder)
	subject, _ := dec.DecodeHeader(h.Get("Subject"))
	from, _ := dec.DecodeHeader(h.Get("From"))
	if subject != "Größe 1234567890123456789" || from != `"Größe" <shop@example.com>` && from != "Größe <shop@example.com>" {
		t.Errorf("%s %s", subject, from)
	}
	for name, want := range map[string]string{
		"To": `"Ada" <ada@example.com>, <bob@example.com>`, "Cc": "<cc@example.com>", "Bcc": "", "Reply-To": "<help@example.com>", "Auto-Submitted": "auto-generated",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if strings.Contains(m.data, "secret@") {
		t.Error("others see whom the mail is copied to")
	}
	if want := "text 1234567890123456789\r\n.\r\nend"; strings.TrimSpace(bodies["text/plain"]) != want || strings.TrimSpace(bodies["text/html"]) != "<b>1234567890123456789</b>" {
		t.Errorf("%q", bodies)
	}
	// The same call is the same mail, another one is not.
	id := func(m received) string { h, _ := parts(t, m.data); return h.Get("Message-Id") }
	if id(mails[0]) != id(mails[1]) || !strings.HasSuffix(id(mails[0]), "@example.com>") {
		t.Errorf("%s and %s", id(mails[0]), id(mails[1]))
	}
	if _, err := invoke(t, s.config(plain+"to: [a@b]"), triggertest.NewCall("l"), triggers.Env{}); err != nil {
		t.Fatal(err)
	}
	if other := s.take(); id(other[0]) == id(mails[0]) {
		t.Error("two firings have one message id")
	}
}

func TestBody(t *testing.T) {
	s := serve(t, nil, false)
	data := func(b string) *triggers.Call {
		c := triggertest.NewCall("k")
		c.Event.Data = []byte(b)
		return c
	}
	for name, tc := range map[string]struct {
		more string
		call *triggers.Call
		want string
	}{
		"data":    {"", data(`{"a":[1]}`), "{\r\n  \"a\": [\r\n    1\r\n  ]\r\n}"},
		"text":    {"", data("plain\ntext"), "plain\r\ntext"},
		"input":   {"", triggertest.NewInputCall("hello"), "hello"},
		"object":  {"", triggertest.NewInputCall(map[string]any{"a": int64(1)}), "{\r\n  \"a\": 1\r\n}"},
		"nothing": {"", &triggers.Call{Key: "k"}, ""},
		"body":    {"body: mine", triggertest.NewInputCall("hello"), "mine"},
		"long":    {"", triggertest.NewInputCall(strings.Repeat("ö", 3000)), strings.Repeat("ö", 3000)},
	} {
		if _, err := invoke(t, s.config(plain+"to: [a@b]\n"+tc.more), tc.call, triggers.Env{}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		mails := s.take()
		if _, bodies := parts(t, mails[0].data); strings.TrimSpace(bodies["text/plain"]) != tc.want {
			t.Errorf("%s: %q, want %q", name, bodies, tc.want)
		}
		for line := range strings.SplitSeq(mails[0].data, "\r\n") {
			if len(line) > 998 {
				t.Errorf("%s: a line of %d bytes", name, len(line))
			}
		}
	}
	if _, err := invoke(t, s.config(plain+"to: [a@b]"), data("\xff"), triggers.Env{}); triggers.ClassOf(err) != triggers.InputError {
		t.Errorf("bytes: %v", err)
	}
}

// TestInjection: what an event says stays where it was put.
func TestInjection(t *testing.T) {
	s := serve(t, nil, false)
	for field, values := range map[string][]string{
		"subject": {"a\r\nBcc: evil@example.com", "a\nX: y", "a\x00b", "a\u0085b"},
		"to":      {"a@b\r\nRCPT TO:<evil@example.com>", "a@b>\r\nDATA", "\"a\r\n\"@b", "no address", "a@b, c", "<a@b", "a@b\x00"},
		"from":    {"a@b, c@d", "a@b\r\nX: y", ""},
		"replyTo": {"a@b, c@d", "x\r\ny"},
	} {
		for _, value := range values {
			keys := map[string]string{"subject": "hello", "to": "[a@b]", "from": "shop@example.com", "replyTo": "help@example.com"}
			keys[field] = "'${ input }'"
			if field == "to" {
				keys[field] = "['${ input }']"
			}
			config := "tls: none"
			for k, v := range keys {
				config += "\n" + k + ": " + v
			}
			c := triggertest.NewInputCall(value)
			if _, err := invoke(t, s.config(config), c, triggers.Env{}); triggers.ClassOf(err) != triggers.InputError || !triggers.Permanent(err) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%s %q: %v", field, value, err)
			}
		}
	}
	if mails := s.take(); len(mails) > 0 {
		t.Errorf("%d mails were sent", len(mails))
	}
	// In the body it is text.
	c := triggertest.NewInputCall("a\r\n.\r\nMAIL FROM:<evil@example.com>\r\n")
	if _, err := invoke(t, s.config(plain+"to: [a@b]"), c, triggers.Env{}); err != nil {
		t.Fatal(err)
	}
	if mails := s.take(); len(mails) != 1 || !strings.Contains(mails[0].data, "MAIL FROM") {
		t.Errorf("%+v", mails)
	}
	// Nobody to write to, known only now.
	c = triggertest.NewInputCall(" ")
	if _, err := invoke(t, s.config(plain+"to: ['${ input }']"), c, triggers.Env{}); err == nil || !strings.Contains(err.Error(), "no recipients") {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	s := serve(t, nil, false)
	sort := func(err error) string {
		if triggers.Permanent(err) {
			return string(triggers.ClassOf(err)) + " permanent"
		}
		return string(triggers.ClassOf(err)) + " retry"
	}
	for name, tc := range map[string]struct {
		part       string
		code       int
		to         string
		want, text string
	}{
		"greylisted":    {to: "450@example.com", want: "FunctionError retry", text: "450"},
		"unknown":       {to: "550@example.com", want: "FunctionError permanent", text: "no such user"},
		"one of two":    {to: "a@example.com, 550@example.com", want: "FunctionError permanent", text: "550@example.com"},
		"sender":        {part: "mail", code: 553, want: "FunctionError permanent", text: "mail is not for you"},
		"busy":          {part: "mail", code: 421, want: "FunctionError retry", text: "421"},
		"spam":          {part: "data", code: 554, want: "FunctionError permanent", text: "data is not for you"},
		"full":          {part: "data", code: 452, want: "FunctionError retry", text: "452"},
		"not at all":    {part: "hello", code: 554, want: "FunctionError permanent", text: "hello is not for you"},
		"not right now": {part: "hello", code: 421, want: "FunctionError retry", text: "hello is not for you"},
	} {
		t.Run(name, func(t *testing.T) {
			s.mu.Lock()
			s.codes = map[string]int{tc.part: tc.code}
			s.mu.Unlock()
			if tc.to == "" {
				tc.to = "a@example.com"
			}
			_, err := invoke(t, s.config(plain+"to: ['"+tc.to+"']"), triggertest.NewCall("k"), triggers.Env{})
			if err == nil || sort(err) != tc.want || !strings.Contains(err.Error(), tc.text) || strings.ContainsAny(err.Error(), "\r\n") || !strings.Contains(err.Error(), s.addr) {
				t.Errorf("%v (%s)", err, sort(err))
			}
			if mails := s.take(); len(mails) > 0 {
				t.Errorf("sent: %+v", mails)
			}
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if _, err := invoke(t, fmt.Sprintf("host: 127.0.0.1\nport: %d\n%sto: [a@b]", ln.Addr().(*net.TCPAddr).Port, plain), triggertest.NewCall("k"), triggers.Env{}); err == nil || sort(err) != "SystemError retry" {
		t.Errorf("%v", err)
	}
}

// TestDelivered: what the server does after it has accepted a mail does not
// send it again.
func TestDelivered(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		say := func(s string) { _, _ = io.WriteString(c, s+"\r\n") }
		say("220 test")
		buf := make([]byte, 64<<10)
		for _, answer := range []string{"250 test", "250 ok", "250 ok", "354 go on"} {
			if _, err := c.Read(buf); err != nil {
				return
			}
			say(answer)
		}
		for all := ""; !strings.Contains(all, "\r\n.\r\n"); {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			all += string(buf[:n])
		}
		say("250 queued as 7") // and hangs up
	}()
	config := fmt.Sprintf("host: 127.0.0.1\nport: %d\n%sto: [a@b]\nbody: x", ln.Addr().(*net.TCPAddr).Port, plain)
	if res, err := invoke(t, config, triggertest.NewCall("k"), triggers.Env{}); err != nil || !strings.Contains(res.Status, "queued as 7") {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestTLSAndLogin(t *testing.T) {
	dir := t.TempDir()
	cfg := &tls.Config{Certificates: []tls.Certificate{triggertest.Certificate(t, dir)}, MinVersion: tls.VersionTLS12}
	start, implicit, open := serve(t, cfg, false), serve(t, cfg, true), serve(t, nil, false)
	const login = "username: shop\npassword: {name: a, key: password}\n"
	for name, tc := range map[string]struct {
		s      *server
		config string
		want   string
		users  int
	}{
		"starttls":          {start, "tls: {mode: starttls, ca: ca.pem}\n" + login, "", 1},
		"default":           {start, "tls: {ca: ca.pem}\n" + login, "", 1},
		"implicit":          {implicit, "tls: {mode: implicit, ca: ca.pem}\n" + login, "", 1},
		"without login":     {start, "tls: {ca: ca.pem}\n", "", 0},
		"wrong password":    {start, "tls: {ca: ca.pem}\nusername: shop\npassword: {name: a, key: wrong}\n", "535", 1},
		"unknown authority": {start, "tls: starttls\n" + login, "certificate", 0},
		"unknown implicit":  {implicit, "tls: implicit\n" + login, "certificate", 0},
		"wrong name":        {start, "tls: {ca: ca.pem, serverName: elsewhere.test}\n" + login, "certificate", 0},
		"no starttls":       {open, "tls: {ca: ca.pem}\n" + login, "does not support STARTTLS", 0},
		"missing ca":        {start, "tls: {ca: absent.pem}\n", "tls.ca: absent.pem", 0},
	} {
		t.Run(name, func(t *testing.T) {
			env := triggers.Env{Dir: dir, Secret: func(ref specs.SecretRef) (string, error) { return secrets[ref.Name+"/"+ref.Key], nil }}
			_, err := invoke(t, tc.s.config("from: a@example.com\nto: [b@example.com]\nsubject: x\n"+tc.config), triggertest.NewCall("k"), env)
			if (err == nil) != (tc.want == "") || err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "canary")) {
				t.Errorf("%v, want %s", err, tc.want)
			}
			tc.s.mu.Lock()
			defer tc.s.mu.Unlock()
			if len(tc.s.users) != tc.users {
				t.Errorf("%d logins", len(tc.s.users))
			}
			if (len(tc.s.mails) == 1) != (tc.want == "") {
				t.Errorf("%d mails", len(tc.s.mails))
			}
			tc.s.users, tc.s.mails = nil, nil
		})
	}
}

func TestValidate(t *testing.T) {
	const ok = "host: a\nfrom: a@b\nto: [c@d]\nsubject: x\n"
	triggertest.Validate(t, Factory(), map[string]string{
		"{}":                             "missing-key",
		"host: a\nfrom: a@b\nsubject: x": "the mail has no recipients",
		"host: a\nfrom: a@b\nsubject: x\nbcc: [c@d]":        "",
		"host: smtp://a\nfrom: a@b\nto: [c@d]\nsubject: x":  "is no name of a host (the port belongs into port)",
		"host: a:25\nfrom: a@b\nto: [c@d]\nsubject: x":      "is no name of a host",
		"host: a\nfrom: nobody\nto: [c@d]\nsubject: x":      "\"nobody\" is no address of mail",
		"host: a\nfrom: a@b\nto: [c@d, nobody]\nsubject: x": "spec.email.to[1]",
		"host: a\nfrom: a@b\nto: [c@d]\nsubject: \"x\\ny\"": "subject has line breaks",
		ok + "username: a":                                          "username and password are needed",
		ok + "password: {name: a, key: b}":                          "username and password are needed",
		ok + "username: '${ data.x }'\npassword: {name: a, key: b}": "username has no templates",
		ok + "port: 70000":                                          "spec.email.port",
		ok + "tls: ssl":                                             "unknown-value",
		ok + "tls: {mode: implicit, cert: a}":                       "needs cert and key",
		ok + "tls: none\nto: ['${ data.x }', a@b, 'A <a@b>, c@d']":  "duplicate-key",
		ok + "tls: none\ncc: ['${ data.x }', a@b, 'A <a@b>, c@d']":  "",
		ok + "tls: {mode: implicit, serverName: x}\nport: 2525":     "",
		"host: '2001:db8::1'\nfrom: a@b\nto: [c@d]\nsubject: x":     "",
	})
}
