package http

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/sensor-engine/engine/bus"
	"github.com/sensor-engine/engine/specs/expression"
	"github.com/sensor-engine/engine/triggers"
	"github.com/sensor-engine/engine/triggers/outbound"
)

// judge decides by the expressions of the config whether an answer is a
// success and, if not, whether another call may give a better one.
func (f *function) judge(label string, resp *http.Response, res *triggers.Result) error {
	env := answer(resp, res)
	code := resp.StatusCode
	failure := statusError(label, res.Status, resp)
	if f.success != nil {
		ok, why := decide(f.success, env)
		if ok {
			return nil
		}
		failure = fmt.Errorf("%s answered %s, which is no success: %s", label, res.Status, why)
	}
	if failure == nil {
		return nil
	}
	again := outbound.Worthwhile(code)
	if f.retryable != nil {
		again, _ = decide(f.retryable, env)
	}
	var permanent *triggers.PermanentError
	switch {
	case !again && errors.As(failure, &permanent):
		return failure
	case !again:
		return &triggers.PermanentError{Err: failure}
	case errors.As(failure, &permanent):
		failure = permanent.Err
	}
	if _, told := errors.AsType[*triggers.RetryAfterError](failure); told {
		return failure
	}
	return outbound.Later(failure, resp.Header)
}

// decide evaluates a condition; why tells what it was when it is not true.
func decide(p *expression.Program, env map[string]any) (ok bool, why string) {
	ok, err := p.Bool(env)
	if err != nil {
		return false, err.Error()
	}
	return ok, p.Source() + " is false"
}

// answer is what expressions see of an answer.
func answer(resp *http.Response, res *triggers.Result) map[string]any {
	headers := make(map[string]any, len(resp.Header))
	for name, values := range resp.Header {
		if len(values) == 1 {
			headers[strings.ToLower(name)] = values[0]
			continue
		}
		list := make([]any, len(values))
		for i, v := range values {
			list[i] = v
		}
		headers[strings.ToLower(name)] = list
	}
	var body any
	switch {
	case res.Truncated || len(res.Output) == 0:
	default:
		v, err := bus.ParseJSON(res.Output)
		switch {
		case err == nil && bus.IsJSON(res.ContentType):
			body = v
		case utf8.Valid(res.Output):
			body = string(res.Output)
		}
	}
	return map[string]any{"status": int64(resp.StatusCode), "headers": headers, "body": body}
}
