package publish

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

// moody is a bus on which some types of events fail or wait.
type moody struct{ triggertest.Host }

func (m *moody) Publish(ctx context.Context, ev *bus.Event) error {
	switch ev.Type {
	case "fail":
		return bus.ErrUnavailable
	case "slow":
		<-ctx.Done()
	}
	return m.Host.Publish(ctx, ev)
}

func TestContract(t *testing.T) {
	for _, permanent := range []string{"type: ''\nsource: ${ data.absent.x }", "type: a\nmaxHops: 1\ndata: {x: '${ data.absent.y }'}"} {
		host := &moody{}
		triggertest.Run(t, triggertest.Suite{
			Factory: Factory(), OK: "type: a.${ type }", Slow: "type: slow", Permanent: permanent, Retryable: "type: fail",
			Key: "type: a", Text: "type: a\nsubject: ${ subject }", Length: "type: a",
			Arrived: func() int { evs := host.Events(); return len(evs[len(evs)-1].Data) },
			Env:     triggers.Env{Host: host},
		})
	}
}

// publish makes one call and returns what it published.
func publish(t *testing.T, config string, c *triggers.Call, host *triggertest.Host) (*bus.Event, error) {
	t.Helper()
	f, v := triggertest.Make(t, Factory(), config, nil, triggers.Env{Host: host})
	c.Values = v.Of(c)
	if _, err := f.Invoke(t.Context(), c); err != nil {
		return nil, err
	}
	evs := host.Events()
	return evs[len(evs)-1], nil
}

func TestEvent(t *testing.T) {
	deep := triggertest.NewCall("k")
	deep.Event.Hops = 3
	for name, tc := range map[string]struct {
		config string
		call   *triggers.Call
		want   string // type source subject contenttype data hops
	}{
		"data untouched": {"type: t", triggertest.NewCall("k"), `t /sensors/sensor  application/json {"id":1234567890123456789} 1`},
		"input":          {"type: t", triggertest.NewInputCall(map[string]any{"a": int64(1)}), `t /sensors/sensor  application/json {"a":1} 1`},
		"data":           {"type: t\nsource: ${ source }/x\nsubject: s-${ data.id }\ndata: {n: '${ data.id }', s: x}", triggertest.NewInputCall("no"), `t /tests/x s-1234567890123456789 application/json {"n":1234567890123456789,"s":"x"} 1`},
		"text":           {"type: t\ncontentType: text/plain\ndata: id ${ data.id }", triggertest.NewCall("k"), `t /sensors/sensor  text/plain id 1234567890123456789 1`},
		"null":           {"type: t\ndata: null", triggertest.NewCall("k"), `t /sensors/sensor    1`},
		"hops":           {"type: t", deep, `t /sensors/sensor  application/json {"id":1234567890123456789} 4`},
		"by hand":        {"type: t", &triggers.Call{Key: "k", Function: "f"}, `t /functions/f    1`},
	} {
		t.Run(name, func(t *testing.T) {
			ev, err := publish(t, tc.config, tc.call, &triggertest.Host{})
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%s %s %s %s %s %d", ev.Type, ev.Source, ev.Subject, ev.DataContentType, ev.Data, ev.Hops); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			if ev.ID != "k/0" || !ev.ProducerID || ev.Cause != "k" || ev.EventSource != bus.SourcePublish || ev.Time.IsZero() {
				t.Errorf("%+v", ev)
			}
		})
	}
}

func TestExtensions(t *testing.T) {
	ev, err := publish(t, "type: t\nextensions: {shop: '${ data.id }', none: ''}", triggertest.NewCall("k"), &triggertest.Host{})
	if err != nil {
		t.Fatal(err)
	}
	if len(ev.Extensions) != 2 || ev.Extensions["shop"] != "1234567890123456789" || !strings.HasPrefix(ev.Extensions["traceparent"], "00-") {
		t.Error(ev.Extensions)
	}
	ev, err = publish(t, "type: t\nextensions: {traceparent: ''}", triggertest.NewCall("k"), &triggertest.Host{})
	if err != nil || len(ev.Extensions) != 0 {
		t.Error(ev, err)
	}
}

func TestRepeated(t *testing.T) {
	host := &triggertest.Host{}
	for range 3 {
		if _, err := publish(t, "type: t", triggertest.NewCall("k"), host); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(host.Events()); n != 1 {
		t.Errorf("%d events of one firing", n)
	}
}

func TestLoop(t *testing.T) {
	c := triggertest.NewCall("0")
	for hop := 1; ; hop++ {
		ev, err := publish(t, "type: test", c, &triggertest.Host{})
		if err != nil {
			var p *triggers.PermanentError
			if hop != bus.MaxHops+1 || !errors.As(err, &p) {
				t.Errorf("hop %d: %v", hop, err)
			}
			for _, s := range []string{"hop limit 16", "trigger trigger of sensor sensor publishes test", "because of test"} {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q is missing in: %v", s, err)
				}
			}
			return
		}
		c.Event, c.Key = ev, fmt.Sprint(hop)
	}
}

func TestFailure(t *testing.T) {
	for err, want := range map[error]bool{bus.ErrTooLarge: true, bus.ErrFull: false, bus.ErrUnavailable: false} {
		_, got := publish(t, "type: t", triggertest.NewCall("k"), &triggertest.Host{Err: err})
		var p *triggers.PermanentError
		if !errors.Is(got, err) || errors.As(got, &p) != want {
			t.Errorf("%v: %v", err, got)
		}
	}
	if _, err := publish(t, "type: t\ncontentType: text/plain\ndata: ${ data.id }", triggertest.NewCall("k"), &triggertest.Host{}); err == nil {
		t.Error("a number became text")
	}
	if _, err := publish(t, "type: t", &triggers.Call{Function: "f"}, &triggertest.Host{}); err == nil {
		t.Error("published without a key")
	}
}

func TestValidate(t *testing.T) {
	triggertest.Validate(t, Factory(), map[string]string{
		"{}":                             "missing-key",
		"type: t\nextensions: {Shop: a}": "is not Shop",
		"type: t\nextensions: {id: a}":   "cannot be named id",
		"type: t\nmaxHops: -1":           "must be positive",
		"type: t\ncontentType: text/plain\ndata: {a: b}": "cannot be text/plain",
		"type: t\ncontentType: a/b+json\ndata: {a: b}":   "",
	})
}
