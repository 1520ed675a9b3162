package api

import (
	"net/http"

	"github.com/sensor-engine/engine/engine"
	"github.com/sensor-engine/engine/engine/fold"
)

// Paused is the answer to a pause or a resumption.
type Paused struct {
	Sensor string `json:"sensor"`
	// Behind is where the sensor stands; nil when it stands where the fold does.
	Behind *engine.BehindStatus `json:"behind,omitempty"`
	// Skipped is how many sequences of EVENTS it will not see.
	Skipped uint64 `json:"skipped,omitempty"`
}

func (s *server) pause(w http.ResponseWriter, r *http.Request) error {
	name, err := s.sensor(r)
	if err != nil {
		return err
	}
	reason := r.URL.Query().Get("reason")
	if len(reason) > fold.MaxReason {
		return badRequest("reason must have at most %d bytes", fold.MaxReason)
	}
	ctx, cancel := within(r)
	defer cancel()
	at, err := s.e.Pause(ctx, name, reason)
	if err != nil {
		return err
	}
	return s.reply(w, Paused{Sensor: name, Behind: at})
}

func (s *server) resume(w http.ResponseWriter, r *http.Request) error {
	name, err := s.sensor(r)
	if err != nil {
		return err
	}
	skip, err := flag(r, "skip")
	if err != nil {
		return err
	}
	ctx, cancel := within(r)
	defer cancel()
	at, skipped, err := s.e.Resume(ctx, name, skip)
	if err != nil {
		return err
	}
	return s.reply(w, Paused{Sensor: name, Behind: at, Skipped: skipped})
}
