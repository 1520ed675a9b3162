package jetstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sensor-engine/engine/bus"
)

// Error codes of the server (its errors.json).
const (
	codeInsufficient = 10023
	codeStoreFailed  = 10077
	codeWrongLastSeq = 10071
	codeWrongLastCon = 10164
	codeMsgTooLarge  = 10054
	codeResources    = 10047
	codeNoMessage    = 10037
	codeSeqNotFound  = 10043
	codeDeleteFailed = 10057
)

// apiError maps an error of the server to one of the contract; what names the
// operation.
func apiError(what string, code int, description string) error {
	var kind error
	switch code {
	case codeInsufficient, codeResources:
		kind = bus.ErrFull
	case codeStoreFailed:
		// The store's own errors share one code; only limits are answered.
		kind = bus.ErrFull
		if description == "message to large" {
			kind = bus.ErrTooLarge
		}
	case codeWrongLastSeq, codeWrongLastCon:
		kind = bus.ErrConflict
	case codeMsgTooLarge:
		kind = bus.ErrTooLarge
	case codeNoMessage, codeSeqNotFound:
		kind = bus.ErrNotFound
	default:
		return fmt.Errorf("%s: %s (code %d): %w", what, description, code, bus.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w (%s)", what, kind, description)
}

// connError maps an error of the client library.
func connError(what string, err error) error {
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &api):
		return apiError(what, int(api.ErrorCode), api.Description)
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return fmt.Errorf("%s: %w", what, bus.ErrNotFound)
	case errors.Is(err, nats.ErrMaxPayload):
		return fmt.Errorf("%s: %w", what, bus.ErrTooLarge)
	case errors.Is(err, context.Canceled), errors.Is(err, bus.ErrClosed):
		return fmt.Errorf("%s: %w", what, err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return fmt.Errorf("%s: the bus is %w", what, bus.ErrClosed)
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrDisconnected):
		return fmt.Errorf("%s: not connected: %w", what, bus.ErrUnavailable)
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		return fmt.Errorf("%s: nobody serves the stream: %w (%w)", what, bus.ErrUnavailable, nats.ErrNoResponders)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return fmt.Errorf("%s: no answer in time: %w (%w)", what, bus.ErrUnavailable, context.DeadlineExceeded)
	}
	return fmt.Errorf("%s: %w (%w)", what, bus.ErrUnavailable, err)
}

// reply is what the server answers to a request of its API.
type reply struct {
	Error *struct {
		Code        int    `json:"code"`
		ErrCode     int    `json:"err_code"`
		Description string `json:"description"`
	} `json:"error"`
	Success   bool   `json:"success"`
	Seq       uint64 `json:"seq"`
	Duplicate bool   `json:"duplicate"`
}

func (r *reply) err(what string) error {
	if r.Error == nil {
		return nil
	}
	return apiError(what, r.Error.ErrCode, r.Error.Description)
}

func decodeReply(what string, data []byte) (reply, error) {
	var r reply
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("%s: unexpected answer %.80q: %w", what, data, bus.ErrUnavailable)
	}
	return r, r.err(what)
}
