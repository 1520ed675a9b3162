// Package slack owns the function kind `slack`: it posts a message to a channel
// of Slack, through an incoming webhook or with the token of an app. It must not
// know queues, retries or sensors; it only tells failures apart.
package slack

import (
	"bytes"
	"context"
	_ "embed" // for the example
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// Config is the config of a `slack` function.
type Config struct {
	URL         *specs.SecretRef `yaml:"url" doc:"Address of an incoming webhook. Whoever has it can post, so it is a secret. Give this or token."`
	Token       *specs.SecretRef `yaml:"token" doc:"Token of an app that may post (scope chat:write). Give this or url."`
	Channel     specs.Text       `yaml:"channel" doc:"Where to post, with token: id or name of a channel, or id of a user. A webhook has a channel of its own." example:"'#shop'"`
	Message     specs.Text       `yaml:"message" doc:"Text of the message; default: the trigger's input if there is one, else the data of the event, unless there are blocks or attachments. Beside blocks it is what notifications show." example:"Order ${ data.id } was *paid*"`
	Format      string           `yaml:"format" enum:"mrkdwn,plain" doc:"Whether the markup of Slack works in message (mrkdwn, default), also where an expression puts it, or message is shown as it is (plain)."`
	Blocks      specs.Template   `yaml:"blocks" doc:"Blocks of the message (Block Kit): a list with ${ expr } in it, or text with the JSON of one." example:"[{type: section, text: {type: mrkdwn, text: 'Order *${ data.id }*'}}]"`
	Attachments specs.Template   `yaml:"attachments" doc:"Attachments of the message: a list with ${ expr } in it, or text with the JSON of one." example:"[{color: danger, text: '${ data.reason }'}]"`
	Thread      *Thread          `yaml:"thread" doc:"The thread that the message belongs to."`
	Sender      *Sender          `yaml:"sender" doc:"Who seems to post. It needs the scope chat:write.customize with token; webhooks of apps of Slack have a name and an icon of their own and do not look at this."`
	TLS         *outbound.TLS    `yaml:"tls" doc:"How the server is verified and this client proves itself, where it is not Slack's own."`
	API         string           `yaml:"api" doc:"Where the methods of Slack are, for token; default https://slack.com/api." example:"https://slack-gov.com/api"`
}

// Thread is where a message is an answer.
type Thread struct {
	TS                        specs.Text `yaml:"ts" doc:"The message to answer: the ts in the output of an earlier call with token. Empty: the message begins a thread of its own." example:"${ input.ts }"`
	MessageAggregationKey     specs.Text `yaml:"messageAggregationKey" doc:"Messages to one channel with the same key make one thread, with token: the first begins it, the others are answers." example:"${ data.orderId }"`
	BroadcastMessageToChannel bool       `yaml:"broadcastMessageToChannel" doc:"Whether answers are shown in the channel too, with token."`
}

// Sender is who seems to post.
type Sender struct {
	Username specs.Text `yaml:"username" doc:"Name." example:"Shop"`
	Icon     specs.Text `yaml:"icon" doc:"An emoji such as :tada:, or the URL of an image." example:"':package:'"`
}

// Choices and defaults of the config.
const (
	formatPlain = "plain"
	defaultAPI  = "https://slack.com/api"
	method      = "chat.postMessage"

	// maxContent bounds a message that nobody wrote, in bytes: Slack wants
	// messages to be shorter than 4,000 characters.
	maxContent = 3500
	// maxIdle is how many connections wait for their next use.
	maxIdle = 16
)

//go:embed example.yaml
var example string

// Factory returns the kind `slack`. Functions of one Factory share their
// connections and threads.
func Factory() triggers.Factory {
	shared := &outbound.Shared[*workspace]{}
	return triggers.Factory{
		Type: specs.Type{
			Name: "slack",
			Doc:  "Posts a message to Slack, through an incoming webhook or with the token of an app.",
			New:  func() any { return &Config{} },
		},
		Example: example,
		Make: func(config any, env triggers.Env) (triggers.Function, error) {
			f := &function{cfg: config.(*Config)}
			key := env.Data + "\n" + f.cfg.TLS.ID(env.Dir)
			f.workspace, f.Closer = shared.Open(key, func() *workspace { return newWorkspace(f.cfg, env) }, (*workspace).CloseIdle)
			return f, nil
		},
		Check: func(config any, dir string, ck *specs.Checker) { config.(*Config).TLS.Check(ck, "tls", dir) },
		Files: func(config any, dir string) []string { return config.(*Config).TLS.Files(dir) },
	}
}

// workspace is what functions share.
type workspace struct {
	outbound.HTTP
	threads *threads
}

func newWorkspace(cfg *Config, env triggers.Env) *workspace {
	dialer := outbound.Dialer()
	return &workspace{
		HTTP:    outbound.HTTP{TLS: cfg.TLS, Dir: env.Dir, Secret: env.Secret, Dial: dialer.DialContext, MaxIdle: maxIdle},
		threads: newThreads(env.Data, env.Logger),
	}
}

type function struct {
	cfg       *Config
	workspace *workspace
	// Closer closes the connections when nobody else uses them.
	io.Closer
}

// Invoke posts the message. It is a success when Slack has taken it.
func (f *function) Invoke(ctx context.Context, c *triggers.Call) (triggers.Result, error) {
	if err := ctx.Err(); err != nil {
		return triggers.Result{}, err
	}
	m, err := f.message(c)
	if err != nil {
		return triggers.Result{}, err
	}
	p := &post{function: f, message: m}
	if f.cfg.Token == nil {
		err = p.toWebhook(ctx, c)
	} else {
		err = p.toChannel(ctx, c)
	}
	return p.result, err
}

// post is one message on its way.
type post struct {
	*function
	message map[string]any
	// label names the callee in errors, without what is secret.
	label  string
	result triggers.Result
}

// toWebhook posts through the webhook.
func (p *post) toWebhook(ctx context.Context, c *triggers.Call) error {
	ref := *p.cfg.URL
	raw, err := c.Values.Secret(ref)
	if err != nil {
		return err
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		// The error of url.Parse repeats the address.
		return triggers.Permanentf("url: key %s of Secret %s is no address of a webhook, which begins with https://", ref.Key, ref.Name)
	}
	p.label = "webhook at " + u.Host
	a, err := p.send(ctx, u, "")
	if err != nil {
		return err
	}
	if err := p.failure(a); err != nil {
		return err
	}
	p.result.ContentType = triggers.MediaType(a.body)
	outbound.Output(&p.result, a.body)
	return nil
}

// toChannel posts with the token.
func (p *post) toChannel(ctx context.Context, c *triggers.Call) error {
	ref := *p.cfg.Token
	token, err := c.Values.Secret(ref)
	if err != nil {
		return err
	}
	token = strings.TrimSpace(token)
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return triggers.Permanentf("token: key %s of Secret %s is no token: it is empty or has spaces or control characters", ref.Key, ref.Name)
	}
	api := p.cfg.api()
	u, err := url.Parse(api)
	if err != nil {
		return triggers.Permanentf("api: %q is no URL", api)
	}
	u = u.JoinPath(method)
	channel, _ := p.message["channel"].(string)
	p.label = u.Host + ", channel " + outbound.Clip(channel)
	key := ""
	if t := p.cfg.Thread; t != nil {
		if key, err = c.Values.Text(t.MessageAggregationKey); err != nil {
			return err
		}
	}
	send := func(ts string) (string, error) {
		delete(p.message, "thread_ts")
		delete(p.message, "reply_broadcast")
		if ts != "" {
			p.message["thread_ts"] = ts
			if p.cfg.Thread.BroadcastMessageToChannel {
				p.message["reply_broadcast"] = true
			}
		}
		a, err := p.send(ctx, u, token)
		if err != nil {
			return "", err
		}
		if err := p.failure(a); err != nil {
			return "", err
		}
		out, err := json.Marshal(map[string]string{"channel": a.reply.Channel, "ts": a.reply.TS})
		p.result.Output, p.result.ContentType = out, "application/json"
		return a.reply.TS, err
	}
	if key == "" {
		ts, _ := p.message["thread_ts"].(string)
		_, err = send(ts)
		return err
	}
	return p.workspace.threads.post(ctx, strings.Join([]string{api, ref.Name, ref.Key, channel, key}, "\x00"), send)
}

func (c *Config) api() string {
	if c.API == "" {
		return defaultAPI
	}
	return c.API
}

// message is what is posted, without the thread of a key.
func (f *function) message(c *triggers.Call) (map[string]any, error) {
	m := map[string]any{}
	put := func(name string, t specs.Text) (string, error) {
		s, err := c.Values.Text(t)
		if s != "" {
			m[name] = s
		}
		return s, err
	}
	if f.cfg.Token != nil {
		switch channel, err := put("channel", f.cfg.Channel); {
		case err != nil:
			return nil, err
		case strings.TrimSpace(channel) == "":
			return nil, triggers.Errorf(triggers.InputError, "channel is empty")
		}
	}
	for _, l := range []struct {
		name  string
		value specs.Template
	}{{"blocks", f.cfg.Blocks}, {"attachments", f.cfg.Attachments}} {
		list, err := elements(c, l.name, l.value)
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			m[l.name] = list
		}
	}
	text, plain, err := f.text(c, m["blocks"] != nil || m["attachments"] != nil)
	if err != nil {
		return nil, err
	}
	if text != "" {
		m["text"] = text
	}
	if plain {
		m["mrkdwn"] = false
	}
	if t := f.cfg.Thread; t != nil {
		if _, err := put("thread_ts", t.TS); err != nil {
			return nil, err
		}
	}
	if s := f.cfg.Sender; s != nil {
		if _, err := put("username", s.Username); err != nil {
			return nil, err
		}
		icon, err := c.Values.Text(s.Icon)
		if err != nil {
			return nil, err
		}
		if icon != "" {
			name, ok := iconField(icon)
			if !ok {
				return nil, triggers.Errorf(triggers.InputError, "sender.icon: %q is neither an emoji such as :tada: nor a URL", outbound.Clip(icon))
			}
			m[name] = icon
		}
	}
	return m, nil
}

// markup takes their meaning from the characters that have one in Slack, where
// <!channel> for example calls everybody.
var markup = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// text is what the message says; plain tells that it is not to be formatted.
// What others wrote never has markup by default.
func (f *function) text(c *triggers.Call, more bool) (text string, plain bool, err error) {
	text, err = c.Values.Text(f.cfg.Message)
	if err != nil {
		return "", false, err
	}
	ours, code := true, false
	if strings.TrimSpace(text) == "" {
		if more {
			return "", false, nil
		}
		if text, code, err = c.Readable(); err != nil {
			return "", false, err
		}
		ours = c.HasInput && !code
		if !ours && len(text) > maxContent {
			text = strings.ToValidUTF8(text[:maxContent], "") + "…"
		}
	}
	text = strings.ToValidUTF8(text, "\uFFFD")
	if strings.TrimSpace(text) == "" {
		return "", false, triggers.Errorf(triggers.InputError, "the message is empty: there is neither message nor input nor data")
	}
	switch {
	case code: // JSON that nobody made a message of
		return "```\n" + markup.Replace(text) + "\n```", false, nil
	case !ours || f.cfg.Format == formatPlain:
		return markup.Replace(text), true, nil
	}
	return text, false, nil
}

// elements are blocks or attachments.
func elements(c *triggers.Call, field string, t specs.Template) ([]any, error) {
	v, err := c.Values.Template(t)
	if err != nil {
		return nil, err
	}
	list, err := parseList(v)
	if err != nil {
		return nil, triggers.Errorf(triggers.InputError, "%s %w", field, err)
	}
	return list, nil
}

// parseList returns a list, or the list that is the JSON in a text. Nil and
// blank text are none.
func parseList(v any) ([]any, error) {
	if s, ok := v.(string); ok {
		if strings.TrimSpace(s) == "" {
			return nil, nil
		}
		parsed, err := bus.ParseJSON([]byte(s))
		if err != nil {
			return nil, fmt.Errorf("is text that is no JSON: %w", err)
		}
		v = parsed
	}
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []any:
		for i, e := range v {
			if _, ok := e.(map[string]any); !ok {
				return nil, fmt.Errorf("has no object as its element %d", i+1)
			}
		}
		return v, nil
	case map[string]any:
		return nil, fmt.Errorf("is an object, not a list; of the JSON of a whole message take the list in it")
	}
	return nil, fmt.Errorf("is no list")
}

// iconField is the field of a message that an icon goes into.
func iconField(icon string) (string, bool) {
	if len(icon) > 2 && icon[0] == ':' && icon[len(icon)-1] == ':' && !strings.ContainsAny(icon, " \t\r\n/") {
		return "icon_emoji", true
	}
	u, err := url.Parse(icon)
	return "icon_url", err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

// send makes one request. It follows no redirects: nobody else gets a message
// or the token.
func (p *post) send(ctx context.Context, u *url.URL, token string) (*answer, error) {
	body, err := json.Marshal(p.message)
	if err != nil {
		return nil, triggers.Errorf(triggers.InputError, "the message is no JSON: %w", err)
	}
	req := (&http.Request{Method: http.MethodPost, URL: u, Host: u.Host, Header: http.Header{
		"Content-Type": {"application/json; charset=utf-8"}, "User-Agent": {"sensor-engine"},
	}}).WithContext(ctx)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	req.Body, _ = req.GetBody()
	req.ContentLength = int64(len(body))
	transport, err := p.workspace.Transport()
	if err != nil {
		return nil, err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, p.unreachable(ctx, err)
	}
	defer resp.Body.Close()
	p.result.Status = outbound.StatusText(resp.StatusCode)
	a := &answer{code: resp.StatusCode, header: resp.Header}
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, triggers.MaxOutput)); err != nil {
		return nil, p.unreachable(ctx, fmt.Errorf("answered %s, but reading the answer failed: %w", p.result.Status, err))
	}
	a.read(token != "")
	return a, nil
}

// unreachable is the error of a call without an answer.
func (p *post) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", p.label, outbound.Cause(ctx, err))
	}
	return triggers.Errorf(triggers.SystemError, "%s: %w", p.label, outbound.Advised(err))
}
