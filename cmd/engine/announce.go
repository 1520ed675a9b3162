package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sensor-engine/engine/engine/listen"
)

// announcement is how client verbs find an engine by its data directory.
type announcement struct {
	// API is the address of the API, as a URL.
	API string `json:"api"`
	// Token is what it asks for, "" for nothing.
	Token string `json:"token,omitempty"`
	// PID is the process of the engine.
	PID int `json:"pid"`
}

func announcementPath(data string) string { return filepath.Join(data, "api.json") }

// announce writes the address of the API into the data directory, for the eyes
// of this user only, and returns what removes it.
func announce(data, addr, token string) (forget func(), err error) {
	b, err := json.Marshal(announcement{API: "http://" + listen.Reachable(addr), Token: token, PID: os.Getpid()})
	if err != nil {
		return nil, err
	}
	path := announcementPath(data)
	tmp := path + ".tmp"
	_ = os.Remove(tmp) // an old one might have another mode
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return func() { _ = os.Remove(path) }, nil
}
