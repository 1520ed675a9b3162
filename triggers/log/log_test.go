package log

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/triggertest"
)

func TestContract(t *testing.T) {
	triggertest.Run(t, triggertest.Suite{
		Factory:   Factory(),
		OK:        "message: order ${ data.id }",
		Permanent: "message: order ${ data.absent.id }",
		Huge:      "message: ${ data.value }",
		Text:      "message: ${ data } of ${ subject }",
	})
}

func TestLine(t *testing.T) {
	for config, want := range map[string]string{
		"{}":                                    `level=INFO msg="event test from /tests about subject, 26 bytes" sensor=sensor trigger=trigger event=event-k key=k`,
		"message: id ${ data.id }\nlevel: warn": `level=WARN msg="id 1234567890123456789" sensor=sensor trigger=trigger event=event-k key=k`,
		"message: \"a\\n$${x} \\e[31m\"":        `level=INFO msg="a\n${x} \x1b[31m" sensor=sensor trigger=trigger event=event-k key=k`,
		"level: debug":                          "",
	} {
		var out bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		f, v := triggertest.Make(t, Factory(), config, nil, triggers.Env{Logger: logger})
		c := triggertest.NewCall("k")
		c.Values = v.Of(c)
		res, err := f.Invoke(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSuffix(out.String(), "\n"); got != want {
			t.Errorf("%s\n got %s\nwant %s", config, got, want)
		}
		if res.Status != "logged" || len(res.Output) == 0 {
			t.Errorf("%+v", res)
		}
	}
	if got := summary(nil); got != "fired without an event" {
		t.Error(got)
	}
}

func TestLong(t *testing.T) {
	f, v := triggertest.Make(t, Factory(), "message: ${ data }", nil, triggers.Env{})
	c := triggertest.NewCall("k")
	c.Event.DataContentType, c.Event.Data = "text/plain", []byte(strings.Repeat("ö", maxMessage))
	c.Values = v.Of(c)
	res, err := f.Invoke(t.Context(), c)
	if err != nil || !res.Truncated || len(res.Output) > maxMessage+3 {
		t.Errorf("%d bytes, %v", len(res.Output), err)
	}
}
