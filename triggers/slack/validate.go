package slack

import (
	"net/url"
	"strings"

	"github.com/sensor-engine/engine/specs"
	"github.com/sensor-engine/engine/triggers"
)

// Validate reports what the types cannot say.
func (c *Config) Validate(ck *specs.Checker) {
	channel, literal := triggers.Literal(c.Channel)
	switch {
	case c.URL != nil && c.Token != nil:
		ck.Errorf("token", specs.CodeInvalidValue, "remove one of them", "url and token are two ways to post")
		return
	case c.URL == nil && c.Token == nil:
		ck.Errorf("", specs.CodeMissingKey, "url: {name: …, key: …} of a Secret with the address of a webhook, or token and channel", "url or token is needed to post")
		return
	case c.Token != nil && literal && strings.TrimSpace(channel) == "":
		ck.Errorf("channel", specs.CodeMissingKey, "an id, or a name in quotes: '#shop'; without them # begins a comment", "token needs the channel to post to")
	case c.URL != nil && c.Channel.Value != "":
		ck.Errorf("channel", specs.CodeInvalidValue, "remove it, or post with token", "a webhook posts to the channel it was made for")
	case c.URL != nil && c.API != "":
		ck.Errorf("api", specs.CodeInvalidValue, "remove it, or post with token", "a webhook has its own address")
	}
	if u, err := url.Parse(c.API); c.API != "" && (err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Contains(c.API, "${")) {
		ck.Errorf("api", specs.CodeInvalidValue, "for example "+defaultAPI, "this is no URL")
	}
	c.TLS.Validate(ck, "tls")
	c.Thread.validate(ck, c.Token != nil)
	if c.Sender != nil {
		if icon, ok := triggers.Literal(c.Sender.Icon); ok && icon != "" {
			if _, ok := iconField(icon); !ok {
				ck.Errorf("sender.icon", specs.CodeInvalidValue, "for example ':tada:'", "%q is neither an emoji nor a URL", icon)
			}
		}
	}
	if c.Format == formatPlain && c.Message.Value == "" && (c.Blocks.Set || c.Attachments.Set) {
		ck.Errorf("format", specs.CodeInvalidValue, "blocks and attachments say it for each text", "format is about message, which is not here")
	}
	validateList(ck, "blocks", c.Blocks)
	validateList(ck, "attachments", c.Attachments)
}

func (t *Thread) validate(ck *specs.Checker, token bool) {
	switch {
	case t == nil:
	case t.TS.Value != "" && t.MessageAggregationKey.Value != "":
		ck.Errorf("thread.ts", specs.CodeInvalidValue, "remove one of them", "ts and messageAggregationKey are two ways to name a thread")
	case !token && t.MessageAggregationKey.Value != "":
		ck.Errorf("thread.messageAggregationKey", specs.CodeInvalidValue, "post with token", "a webhook does not tell what it posted, so its messages cannot be answered")
	case !token && t.BroadcastMessageToChannel:
		ck.Errorf("thread.broadcastMessageToChannel", specs.CodeInvalidValue, "post with token", "a webhook cannot do this")
	case t.TS.Value == "" && t.MessageAggregationKey.Value == "":
		ck.Errorf("thread", specs.CodeMissingKey, "give ts or messageAggregationKey", "it is not said which thread this is")
	}
}

// validateList checks what is known of blocks or attachments before a call.
func validateList(ck *specs.Checker, field string, t specs.Template) {
	var err error
	switch root := t.Root.(type) {
	case specs.Text:
		if s, ok := triggers.Literal(root); ok {
			_, err = parseList(s)
		}
	case []any: // an element that is text may be an expression
		known := make([]any, len(root))
		for i, e := range root {
			known[i] = e
			if text, ok := e.(specs.Text); ok {
				if _, constant := triggers.Literal(text); !constant {
					known[i] = map[string]any{}
				}
			}
		}
		_, err = parseList(known)
	default:
		_, err = parseList(root)
	}
	if err != nil {
		ck.Errorf(field, specs.CodeInvalidValue, "a list of objects: [{type: …}, …]", "%s %v", field, err)
	}
}
