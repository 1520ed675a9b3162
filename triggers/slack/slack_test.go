package slack

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// service answers as Slack does, and keeps what it gets. Names decide: the
// webhook /services/WORD and the channel #WORD are refused with that word.
type service struct {
	*httptest.Server

	mu     sync.Mutex
	posts  []map[string]any
	gone   map[string]bool // threads whose first message was deleted
	limits int             // how many answers are 429 first
	last   http.Header
	hold   chan struct{} // when set, a message that begins a thread waits for it
	began  chan struct{} // told about each of those
}

const (
	canaryToken = "xoxb-canary-token"
	canaryHook  = "T000/B000/canary-webhook"
)

func serve(t testing.TB) *service {
	s := &service{gone: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /services/{path...}", s.webhook)
	mux.HandleFunc("POST /api/chat.postMessage", s.postMessage)
	mux.HandleFunc("/moved/", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://slack.com/", http.StatusFound)
	})
	mux.HandleFunc("/page/", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "<html>"+canaryToken+"</html>") })
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// take returns the messages there are, and forgets them.
func (s *service) take() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.posts
	s.posts = nil
	return p
}

// refusal is what is wrong with a message, "" when nothing is.
func (s *service) refusal(r *http.Request) (m map[string]any, why string) {
	s.last = r.Header.Clone()
	if json.NewDecoder(r.Body).Decode(&m) != nil {
		return nil, "invalid_payload"
	}
	if m["text"] == nil && m["blocks"] == nil && m["attachments"] == nil {
		return nil, "no_text"
	}
	blocks, _ := m["blocks"].([]any)
	for _, b := range blocks {
		if b.(map[string]any)["type"] == nil {
			return nil, "invalid_blocks"
		}
	}
	return m, ""
}

func (s *service) limited(w http.ResponseWriter) bool {
	if s.limits == 0 {
		return false
	}
	s.limits--
	w.Header().Set("Retry-After", "30")
	w.WriteHeader(http.StatusTooManyRequests)
	return true
}

func (s *service) webhook(w http.ResponseWriter, r *http.Request) {
	word := r.PathValue("path")
	if word == "huge" {
		_, _ = w.Write(make([]byte, 64<<20)) // fails when nobody reads it
		return
	}
	if word == "slow" {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limited(w) {
		_, _ = io.WriteString(w, "rate_limited")
		return
	}
	m, why := s.refusal(r)
	code := map[string]int{
		"invalid_payload": 400, "no_text": 400, "invalid_blocks": 400, "user_not_found": 400, "action_prohibited": 403, "invalid_token": 403,
		"channel_not_found": 404, "no_service": 404, "channel_is_archived": 410, "rollup_error": 500, "unavailable": 503,
	}
	if code[word] > 0 {
		why = word
	}
	switch {
	case word == "workflow":
		_, _ = io.WriteString(w, `{"ok":false,"error":"invalid_arguments"}`)
	case why != "":
		w.WriteHeader(code[why])
		_, _ = io.WriteString(w, why)
	default:
		s.posts = append(s.posts, m)
		_, _ = io.WriteString(w, "ok")
	}
}

func (s *service) postMessage(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.limited(w) {
		_, _ = io.WriteString(w, `{"ok":false,"error":"ratelimited"}`)
		return
	}
	m, why := s.refusal(r)
	more := ""
	ts, _ := m["thread_ts"].(string)
	channel, _ := m["channel"].(string)
	switch auth := r.Header.Get("Authorization"); {
	case auth == "":
		why = "not_authed"
	case auth != "Bearer "+canaryToken:
		why = "invalid_auth"
	case why == "invalid_blocks":
		more = `,"response_metadata":{"messages":["[ERROR] missing required field: type [json-pointer:/blocks/0/type]"]}`
	case why != "":
	case channel == "#missing_scope":
		why, more = "missing_scope", `,"needed":"chat:write","provided":"identify"`
	case s.gone[ts]:
		why = "thread_not_found"
	case strings.Contains(channel, "_"):
		why = channel[1:]
	}
	if why == "" && ts == "" && s.hold != nil {
		s.began <- struct{}{}
		hold := s.hold
		s.mu.Unlock()
		<-hold
		s.mu.Lock()
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if why != "" {
		fmt.Fprintf(w, `{"ok":false,"error":%q%s}`, why, more)
		return
	}
	s.posts = append(s.posts, m)
	fmt.Fprintf(w, `{"ok":true,"channel":"C1","ts":"1700000000.%06d","message":{"text":"x"}}`, len(s.posts))
}

// secrets are those of a service; hook is a path of its webhooks.
func (s *service) secrets() map[string]string {
	m := map[string]string{
		"slack/token": canaryToken, "slack/wrong": "xoxb-canary-wrong", "slack/spaced": "xoxb canary", "slack/empty": " ",
		"slack/hook": s.URL + "/services/" + canaryHook + "\n", "slack/noaddress": "canary-noaddress", "slack/moved": s.URL + "/moved/canary-moved",
		"slack/page": s.URL + "/page/canary-page",
	}
	for _, word := range []string{
		"slow", "invalid_payload", "no_text", "user_not_found", "action_prohibited", "invalid_token", "channel_not_found", "no_service", "channel_is_archived",
		"rollup_error", "unavailable", "workflow",
	} {
		m["slack/"+word] = s.URL + "/services/" + word
	}
	return m
}

// hook is a config that posts through a webhook, app one that posts with the
// token.
func hook(key, more string) string { return "url: {name: slack, key: " + key + "}\n" + more }

func (s *service) app(channel, more string) string {
	return "api: " + s.URL + "/api\ntoken: {name: slack, key: token}\nchannel: '" + channel + "'\n" + more
}

// maker makes calls of functions that share what one Factory shares.
type maker struct {
	t       *testing.T
	factory triggers.Factory
	secrets map[string]string
	env     triggers.Env
}

func (s *service) maker(t *testing.T) *maker {
	return &maker{t: t, factory: Factory(), secrets: s.secrets()}
}

func (m *maker) invoke(config string, c *triggers.Call) (triggers.Result, error) {
	m.t.Helper()
	f, v := triggertest.Make(m.t, m.factory, config, m.secrets, m.env)
	c.Values = v.Of(c)
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	res, err := f.Invoke(ctx, c)
	if err != nil && (strings.Contains(err.Error(), "canary") || strings.ContainsAny(err.Error(), "\r\n")) {
		m.t.Errorf("the error shows a secret or has lines: %v", err)
	}
	return res, err
}

func withData(data string) *triggers.Call {
	c := triggertest.NewCall("k")
	c.Event.Data = []byte(data)
	return c
}

func TestContract(t *testing.T) {
	s := serve(t)
	secrets := s.secrets()
	delete(secrets, "slack/empty") // is in every text
	t.Run("webhook", func(t *testing.T) {
		triggertest.Run(t, triggertest.Suite{
			Factory: Factory(), Mode: "webhook", Secrets: secrets,
			Huge: hook("huge", ""), Text: hook("hook", "message: '${ data } of ${ subject }'"),
			Addr: s.Listener.Addr().String(), Server: func(addr string) string {
				secrets["slack/cut"] = "http://" + addr + "/services/cut"
				return hook("cut", "message: '${ data.value }'")
			},
			OK: hook("hook", "message: id ${ data.id }"), Slow: hook("slow", ""), Permanent: hook("no_service", ""), Retryable: hook("rollup_error", ""),
		})
	})
	t.Run("token", func(t *testing.T) {
		triggertest.Run(t, triggertest.Suite{
			Factory: Factory(), Mode: "token", Secrets: secrets, Env: triggers.Env{Data: t.TempDir()},
			Text: s.app("#shop", "message: '${ data } of ${ subject }'"),
			Addr: s.Listener.Addr().String(), Server: func(addr string) string {
				return strings.ReplaceAll(s.app("#shop", "message: '${ data.value }'"), s.Listener.Addr().String(), addr)
			},
			OK:        s.app("#shop", "message: id ${ data.id }\nthread: {messageAggregationKey: '${ id }'}"),
			Permanent: s.app("#not_in_channel", ""), Retryable: s.app("#internal_error", ""),
		})
	})
}

// TestMessage: what is sent.
func TestMessage(t *testing.T) {
	s := serve(t)
	blocks := `[{"type":"section","text":{"type":"mrkdwn","text":"a"}}]`
	for name, tc := range map[string]struct {
		config string
		call   *triggers.Call
		want   string
	}{
		"message":           {"message: a *b* <!here> ${ data.id }", triggertest.NewCall("k"), `{"text":"a *b* <!here> 1234567890123456789"}`},
		"plain":             {"message: a *b* <!here> & ${ data.id }\nformat: plain", triggertest.NewCall("k"), `{"mrkdwn":false,"text":"a *b* &lt;!here&gt; &amp; 1234567890123456789"}`},
		"input":             {"", triggertest.NewInputCall("a *b* <!here>"), `{"text":"a *b* <!here>"}`},
		"input as it is":    {"format: plain", triggertest.NewInputCall("a <b>"), `{"mrkdwn":false,"text":"a &lt;b&gt;"}`},
		"object":            {"", triggertest.NewInputCall(map[string]any{"a": "<!here>"}), "{\"text\":\"```\\n{\\n  \\\"a\\\": \\\"&lt;!here&gt;\\\"\\n}\\n```\"}"},
		"data":              {"", withData(`{"a":"<!here>"}`), "{\"text\":\"```\\n{\\n  \\\"a\\\": \\\"&lt;!here&gt;\\\"\\n}\\n```\"}"},
		"text of others":    {"", withData(`hello <!here>`), `{"mrkdwn":false,"text":"hello &lt;!here&gt;"}`},
		"long":              {"", withData(strings.Repeat("ö", 4000)), `{"mrkdwn":false,"text":"` + strings.Repeat("ö", maxContent/2) + `…"}`},
		"blocks":            {"blocks:\n- {type: section, text: {type: mrkdwn, text: '${ data.id } <b>'}}", triggertest.NewCall("k"), `{"blocks":[{"text":{"text":"1234567890123456789 <b>","type":"mrkdwn"},"type":"section"}]}`},
		"blocks as JSON":    {"message: m\nblocks: '" + blocks + "'", triggertest.NewCall("k"), `{"blocks":` + `[{"text":{"text":"a","type":"mrkdwn"},"type":"section"}]` + `,"text":"m"}`},
		"blocks of input":   {"blocks: ${ input.blocks }", triggertest.NewInputCall(map[string]any{"blocks": []any{map[string]any{"type": "divider"}}}), `{"blocks":[{"type":"divider"}]}`},
		"JSON of input":     {"attachments: ${ input }", triggertest.NewInputCall(`[{"text":"t","n":12345678901234567}]`), `{"attachments":[{"n":12345678901234567,"text":"t"}]}`},
		"no blocks":         {"message: m\nblocks: ${ input }", triggertest.NewInputCall(nil), `{"text":"m"}`},
		"sender":            {"message: m\nsender: {username: U, icon: ':tada:'}", triggertest.NewCall("k"), `{"icon_emoji":":tada:","text":"m","username":"U"}`},
		"sender by address": {"message: m\nsender: {icon: 'https://a.example/${ data.id }.png'}", triggertest.NewCall("k"), `{"icon_url":"https://a.example/1234567890123456789.png","text":"m"}`},
		"thread":            {"message: m\nthread: {ts: '${ input }'}", triggertest.NewInputCall("17.1"), `{"text":"m","thread_ts":"17.1"}`},
		"no thread":         {"message: m\nthread: {ts: '${ input }'}", triggertest.NewInputCall(""), `{"text":"m"}`},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := s.maker(t).invoke(hook("hook", tc.config), tc.call)
			if err != nil || string(res.Output) != "ok" || res.Status != "200 OK" {
				t.Fatalf("%+v, %v", res, err)
			}
			posts := s.take()
			var want map[string]any
			if err := json.Unmarshal([]byte(tc.want), &want); err != nil {
				t.Fatal(tc.want, err)
			}
			a, _ := json.Marshal(posts[0])
			b, _ := json.Marshal(want)
			if string(a) != string(b) {
				t.Errorf("\n got %s\nwant %s", a, b)
			}
			if auth := s.last.Get("Authorization"); auth != "" {
				t.Errorf("a webhook got %s", auth)
			}
		})
	}
}

// TestUnfit: what is no message is not sent.
func TestUnfit(t *testing.T) {
	s := serve(t)
	for name, tc := range map[string]struct {
		config, want string
		call         *triggers.Call
	}{
		"nothing to say":       {"", "the message is empty", &triggers.Call{Key: "k"}},
		"an empty message":     {"message: '${ input }'", "the message is empty", triggertest.NewInputCall(" ")},
		"bytes":                {"", "is no text", withData("\xff")},
		"text that is no list": {"blocks: '${ input }'", "blocks is text that is no JSON", triggertest.NewInputCall("[{")},
		"a whole message":      {"blocks: '${ input }'", "blocks is an object, not a list; of the JSON of a whole message take the list in it", triggertest.NewInputCall(`{"blocks":[]}`)},
		"a number":             {"blocks: '${ input }'", "blocks is no list", triggertest.NewInputCall(int64(3))},
		"a list of text":       {"attachments: '${ input }'", "attachments has no object as its element 2", triggertest.NewInputCall([]any{map[string]any{}, "x"})},
		"an icon":              {"message: m\nsender: {icon: '${ input }'}", "neither an emoji", triggertest.NewInputCall("tada")},
	} {
		_, err := s.maker(t).invoke(hook("hook", tc.config), tc.call)
		if err == nil || triggers.ClassOf(err) != triggers.InputError || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", name, err, tc.want)
		}
	}
	if _, err := s.maker(t).invoke(s.app("${ input }", "message: m"), triggertest.NewInputCall("")); triggers.ClassOf(err) != triggers.InputError {
		t.Error(err)
	}
	if posts := s.take(); len(posts) > 0 {
		t.Errorf("sent: %v", posts)
	}
}

// TestFailures: each refusal is of the right sort and says what to do.
func TestFailures(t *testing.T) {
	s := serve(t)
	for name, tc := range map[string]struct {
		config, sort, text string
		limits             int
	}{
		"webhook: bad payload":   {hook("invalid_payload", ""), "InputError permanent", "refused the message: invalid_payload (400 Bad Request)", 0},
		"webhook: no user":       {hook("user_not_found", ""), "InputError permanent", "user_not_found", 0},
		"webhook: forbidden":     {hook("action_prohibited", ""), "FunctionError permanent", "action_prohibited (403 Forbidden); a rule of the workspace forbids it", 0},
		"webhook: revoked":       {hook("invalid_token", ""), "FunctionError permanent", "make a new one and put its address into key invalid_token of Secret slack", 0},
		"webhook: removed":       {hook("no_service", ""), "FunctionError permanent", "no_service (404 Not Found); the webhook is gone or disabled", 0},
		"webhook: no channel":    {hook("channel_not_found", ""), "FunctionError permanent", "the channel of the webhook is gone", 0},
		"webhook: archived":      {hook("channel_is_archived", ""), "FunctionError permanent", "410 Gone", 0},
		"webhook: trouble":       {hook("rollup_error", ""), "FunctionError retry", "rollup_error (500", 0},
		"webhook: away":          {hook("unavailable", ""), "SystemError retry", "503", 0},
		"webhook: busy":          {hook("hook", ""), "FunctionError after 30s", "rate_limited (429", 1},
		"webhook: of a workflow": {hook("workflow", ""), "InputError permanent", "invalid_arguments", 0},
		"webhook: elsewhere":     {hook("moved", ""), "FunctionError permanent", "302 Found; redirects are not followed", 0},
		"webhook: no address":    {hook("noaddress", ""), "FunctionError permanent", "url: key noaddress of Secret slack is no address of a webhook", 0},
		"webhook: no secret":     {hook("absent", ""), "FunctionError retry", "absent", 0},
		"no channel":             {s.app("#channel_not_found", ""), "FunctionError permanent", "channel #channel_not_found: refused the message: channel_not_found; check the name or take the id", 0},
		"not invited":            {s.app("#not_in_channel", ""), "FunctionError permanent", "invite the app to the channel", 0},
		"archived":               {s.app("#is_archived", ""), "FunctionError permanent", "not archived", 0},
		"no scope":               {s.app("#missing_scope", ""), "FunctionError permanent", "give the app the scope chat:write and install it again", 0},
		"trouble":                {s.app("#internal_error", ""), "FunctionError retry", "internal_error", 0},
		"too long":               {s.app("#msg_too_long", ""), "InputError permanent", "msg_too_long", 0},
		"unknown word":           {s.app("#some_new_word", ""), "FunctionError permanent", "some_new_word", 0},
		"busy":                   {s.app("#shop", ""), "FunctionError after 30s", "ratelimited", 1},
		"busy in the body":       {s.app("#rate_limited", ""), "FunctionError retry", "rate_limited", 0},
		"bad blocks":             {s.app("#shop", "blocks: [{text: x}]"), "InputError permanent", "invalid_blocks: [ERROR] missing required field: type [json-pointer:/blocks/0/type]; try the blocks", 0},
		"no thread":              {s.app("#shop", "thread: {ts: '1.1'}"), "FunctionError permanent", "thread_not_found; check thread.ts", 0},
		"wrong token":            {strings.Replace(s.app("#shop", ""), "key: token", "key: wrong", 1), "FunctionError permanent", "invalid_auth; put a token that is in force into key wrong of Secret slack", 0},
		"no token":               {strings.Replace(s.app("#shop", ""), "key: token", "key: empty", 1), "FunctionError permanent", "key empty of Secret slack is no token", 0},
		"token with spaces":      {strings.Replace(s.app("#shop", ""), "key: token", "key: spaced", 1), "FunctionError permanent", "key spaced of Secret slack is no token", 0},
		"not Slack":              {strings.Replace(s.app("#shop", ""), "/api\n", "/page\n", 1), "SystemError retry", "answered 200 OK; this is no answer of Slack; check api", 0},
		"no such method":         {strings.Replace(s.app("#shop", ""), "/api\n", "/none\n", 1), "FunctionError permanent", "answered 404 Not Found", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s.mu.Lock()
			s.limits, s.gone["1.1"] = tc.limits, true
			s.mu.Unlock()
			_, err := s.maker(t).invoke(tc.config, triggertest.NewCall("k"))
			sort := " retry"
			if later, ok := errors.AsType[*triggers.RetryAfterError](err); ok {
				sort = " after " + later.After.String()
			} else if triggers.Permanent(err) {
				sort = " permanent"
			}
			sort = string(triggers.ClassOf(err)) + sort
			if err == nil || sort != tc.sort || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v (%s), want %s (%s)", err, sort, tc.text, tc.sort)
			}
		})
	}
	s.Close()
	if _, err := s.maker(t).invoke(hook("hook", ""), triggertest.NewCall("k")); triggers.ClassOf(err) != triggers.SystemError || triggers.Permanent(err) {
		t.Errorf("away: %v", err)
	}
}

// TestTLS: a server with a certificate of one's own, as Mattermost may have.
func TestTLS(t *testing.T) {
	s := serve(t)
	dir := t.TempDir()
	secure := httptest.NewUnstartedServer(s.Config.Handler)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{triggertest.Certificate(t, dir)}, MinVersion: tls.VersionTLS12}
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	m := s.maker(t)
	m.env.Dir = dir
	m.secrets["slack/hook"] = secure.URL + "/services/" + canaryHook
	if _, err := m.invoke(hook("hook", "message: m\ntls: {ca: ca.pem}"), triggertest.NewCall("k")); err != nil {
		t.Error(err)
	}
	if _, err := m.invoke(hook("hook", "message: m"), triggertest.NewCall("k")); triggers.ClassOf(err) != triggers.SystemError || !strings.Contains(err.Error(), "put the authority into tls.ca") {
		t.Error(err)
	}
	if _, err := m.invoke(hook("hook", "message: m\ntls: {ca: absent.pem}"), triggertest.NewCall("k")); err == nil || !strings.Contains(err.Error(), "tls.ca: absent.pem") {
		t.Error(err)
	}
	if posts := s.take(); len(posts) != 1 {
		t.Errorf("%d messages", len(posts))
	}
}

func TestToken(t *testing.T) {
	s := serve(t)
	res, err := s.maker(t).invoke(s.app("#shop", "message: m\nsender: {username: U}"), triggertest.NewCall("k"))
	if err != nil || string(res.Output) != `{"channel":"C1","ts":"1700000000.000001"}` || res.ContentType != "application/json" {
		t.Fatalf("%s, %v", res.Output, err)
	}
	if p := s.take()[0]; p["channel"] != "#shop" || p["text"] != "m" || p["username"] != "U" || p["thread_ts"] != nil || p["reply_broadcast"] != nil {
		t.Errorf("%v", p)
	}
	if s.last.Get("Authorization") != "Bearer "+canaryToken {
		t.Error(s.last)
	}
	if _, err := s.maker(t).invoke(s.app("#shop", "message: m\nthread: {ts: '17.5', broadcastMessageToChannel: true}"), triggertest.NewCall("k")); err != nil {
		t.Fatal(err)
	}
	if p := s.take()[0]; p["thread_ts"] != "17.5" || p["reply_broadcast"] != true {
		t.Errorf("%v", p)
	}
}

// TestThreads: messages with one key to one channel are one thread, also when
// they are posted at the same time, after a restart, and when its first message
// was deleted.
func TestThreads(t *testing.T) {
	s := serve(t)
	m := s.maker(t)
	m.env.Data = t.TempDir()
	post := func(m *maker, channel, key string) string {
		t.Helper()
		if _, err := m.invoke(s.app(channel, "message: m\nthread: {messageAggregationKey: '${ input }'}"), triggertest.NewInputCall(key)); err != nil {
			t.Fatal(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		ts, _ := s.posts[len(s.posts)-1]["thread_ts"].(string)
		return ts
	}
	first := "1700000000.000001"
	for i, tc := range []struct{ channel, key, want string }{
		{"#shop", "a", ""}, {"#shop", "a", first}, {"#shop", "b", ""}, {"#other", "a", ""}, {"#shop", "a", first}, {"#shop", "", ""}, {"#shop", "", ""},
	} {
		if ts := post(m, tc.channel, tc.key); ts != tc.want {
			t.Errorf("%d: %s in %s answers %q, want %q", i, tc.key, tc.channel, ts, tc.want)
		}
	}
	restarted := s.maker(t)
	restarted.env.Data = m.env.Data
	if ts := post(restarted, "#shop", "a"); ts != first {
		t.Errorf("after a restart: %q", ts)
	}
	s.mu.Lock()
	s.gone[first] = true
	s.mu.Unlock()
	if ts := post(restarted, "#shop", "a"); ts != "" {
		t.Errorf("the deleted message %q is answered", ts)
	}
	if ts := post(restarted, "#shop", "a"); ts == "" || ts == first {
		t.Errorf("then: %q", ts)
	}
	if ts := post(s.maker(t), "#shop", "a"); ts != "" { // elsewhere nothing is known
		t.Errorf("%q", ts)
	}

	// Files that hold something else, or cannot be written, do no harm.
	dir := filepath.Join(m.env.Data, "slack", "threads")
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f.Name()), []byte("<x>"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := s.maker(t)
	again.env.Data = m.env.Data
	if ts := post(again, "#shop", "b"); ts != "" {
		t.Errorf("%q", ts)
	}
	blocked := s.maker(t)
	blocked.env.Data = filepath.Join(dir, files[0].Name())
	if ts := post(blocked, "#shop", "b"); ts != "" {
		t.Errorf("%q", ts)
	}
}

// TestOneFirstMessage: calls at the same time wait for the one that begins the
// thread, and not longer than their time.
func TestOneFirstMessage(t *testing.T) {
	s := serve(t)
	s.hold, s.began = make(chan struct{}), make(chan struct{}, 10)
	m := s.maker(t)
	f, v := triggertest.Make(t, m.factory, s.app("#shop", "message: m\nthread: {messageAggregationKey: k}"), m.secrets, m.env)
	invoke := func(ctx context.Context) error {
		c := triggertest.NewCall("k")
		c.Values = v.Of(c)
		_, err := f.Invoke(ctx, c)
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := invoke(t.Context()); err != nil {
			t.Error(err)
		}
	})
	<-s.began
	for range 5 {
		wg.Go(func() {
			if err := invoke(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := invoke(ctx); !errors.Is(err, context.DeadlineExceeded) || triggers.Permanent(err) {
		t.Errorf("waiting: %v", err)
	}
	close(s.hold)
	wg.Wait()
	begin := 0
	for _, p := range s.take() {
		if p["thread_ts"] == nil {
			begin++
		}
	}
	if begin != 1 {
		t.Errorf("%d threads", begin)
	}
}

func TestThreadsAreForgotten(t *testing.T) {
	dir := t.TempDir()
	post := func(th *threads, key string) (answered string) {
		t.Helper()
		if err := th.post(t.Context(), key, func(ts string) (string, error) { answered = ts; return "17.1", nil }); err != nil {
			t.Fatal(err)
		}
		return answered
	}
	th := newThreads(dir, nil)
	for i := range maxThreads + 10 {
		th.open(fmt.Sprint(i))
	}
	if len(th.known) > maxThreads {
		t.Errorf("%d threads in memory", len(th.known))
	}
	post(th, "old")
	post(th, "used")
	old := time.Now().Add(-2 * forgotten)
	files, _ := os.ReadDir(th.dir)
	for _, f := range files {
		if err := os.Chtimes(filepath.Join(th.dir, f.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	next := newThreads(dir, nil)
	if ts := post(next, "used"); ts != "17.1" {
		t.Errorf("answers %q", ts)
	}
	post(next, "new") // looks for what is to be forgotten
	files, _ = os.ReadDir(th.dir)
	if len(files) != 2 || post(newThreads(dir, nil), "old") != "" {
		t.Errorf("%v", files)
	}
	failing := errors.New("no")
	if err := next.post(t.Context(), "failed", func(string) (string, error) { return "", failing }); !errors.Is(err, failing) {
		t.Error(err)
	}
	if ts := post(next, "failed"); ts != "" {
		t.Errorf("a message that failed began the thread %q", ts)
	}
}

func TestValidate(t *testing.T) {
	const url, app = "url: {name: a, key: b}\n", "token: {name: a, key: b}\nchannel: C1\n"
	triggertest.Validate(t, Factory(), map[string]string{
		"message: m": "test.yaml:6:5: error[missing-key] spec.slack: url or token is needed to post (url: {name: …, key: …} of a Secret with the address of a webhook, or token and channel)",
		"url: https://hooks.slack.com/services/x":                       "spec.slack.url: ",
		url + "token: {name: a, key: c}":                                "url and token are two ways to post",
		url + "channel: '#shop'":                                        "spec.slack.channel: a webhook posts to the channel it was made for (remove it, or post with token)",
		url + "api: https://a":                                          "a webhook has its own address",
		"token: {name: a, key: b}\nchannel: #shop":                      "token needs the channel to post to (an id, or a name in quotes: '#shop'; without them # begins a comment)",
		"token: {name: a, key: b}":                                      "token needs the channel",
		app + "api: slack.com":                                          "spec.slack.api: this is no URL (for example https://slack.com/api)",
		app + "api: https://${ data.host }":                             "this is no URL",
		app + "thread: {}":                                              "it is not said which thread this is",
		app + "thread: {ts: '1.1', messageAggregationKey: k}":           "two ways to name a thread",
		app + "thread: {messageAggregationKey: k}":                      "",
		url + "thread: {messageAggregationKey: k}":                      "a webhook does not tell what it posted",
		url + "thread: {ts: '1.1', broadcastMessageToChannel: true}":    "a webhook cannot do this",
		url + "thread: {ts: '1.1'}":                                     "",
		url + "sender: {icon: tada}":                                    "\"tada\" is neither an emoji nor a URL",
		url + "sender: {icon: '${ data.icon }'}":                        "",
		url + "tls: {cert: a.pem}":                                      "needs cert and key",
		url + "format: html":                                            "unknown-value",
		url + "format: plain\nblocks: [{type: divider}]":                "format is about message, which is not here",
		url + "blocks: {type: divider}":                                 "spec.slack.blocks: blocks is an object, not a list",
		url + "blocks: [divider]":                                       "blocks has no object as its element 1",
		url + "blocks: ['${ data.block }']":                             "",
		url + "blocks: '[{'":                                            "blocks is text that is no JSON",
		url + "blocks: '[{\"type\": \"divider\"}]'":                     "",
		url + "blocks: '[{\"text\": \"${ data.x }\"}]'\nattachments: ~": "",
		url + "attachments: 3":                                          "attachments is no list",
		url + "thread: {messageAgregationKey: k}":                       "messageAggregationKey",
	})
}

// FuzzAnswer: whatever is answered, a failure is one line without the words of
// strangers, and what is no success is one.
func FuzzAnswer(f *testing.F) {
	for _, body := range []string{"ok", "no_service", `{"ok":true,"ts":"1.1"}`, `{"ok":false,"error":"a\nb","response_metadata":{"messages":["x\n"]}}`, `{"ok":null}`, "<html>", `"ok"`, "[]"} {
		f.Add(200, body, true)
		f.Add(404, body, false)
	}
	f.Fuzz(func(t *testing.T, code int, body string, token bool) {
		cfg := triggertest.Config(t, Factory(), hook("hook", "")).(*Config)
		if token {
			cfg = triggertest.Config(t, Factory(), "token: {name: slack, key: token}\nchannel: C1").(*Config)
		}
		a := &answer{code: code, body: []byte(body), header: http.Header{}}
		a.read(token)
		err := (&post{function: &function{cfg: cfg}, label: "slack"}).failure(a)
		var r struct {
			OK *bool `json:"ok"`
		}
		said := json.Unmarshal([]byte(body), &r) == nil && r.OK != nil
		success := code >= 200 && code < 300 && (said && *r.OK || !said && !token)
		if (err == nil) != success {
			t.Fatalf("%v", err)
		}
		if err != nil && (strings.ContainsAny(err.Error(), "\r\n\x00<") && !said || slices.ContainsFunc([]rune(err.Error()), func(r rune) bool { return r == '\n' || r == 0 })) {
			t.Fatalf("%q", err)
		}
	})
}
