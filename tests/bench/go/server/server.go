// Package server holds what the servers of this module share: settings from the environment, and waiting.
package server

import (
	"log"
	"net/http"
	"os"
	"strconv"
	"time"
)

// Number reads a setting; the program ends if it is no number, or less than the least.
func Number(name string, otherwise, least int) int {
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	value, err := strconv.Atoi(text)
	if err != nil || value < least {
		log.Fatalf("%s=%q: must be a number from %d on", name, text, least)
	}
	return value
}

// Milliseconds reads a setting that is a duration.
func Milliseconds(name string, otherwise int) time.Duration {
	return time.Duration(Number(name, otherwise, 0)) * time.Millisecond
}

// Pause waits, and says whether the client is still there.
func Pause(r *http.Request, length time.Duration) bool {
	if length <= 0 {
		return r.Context().Err() == nil
	}
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}
