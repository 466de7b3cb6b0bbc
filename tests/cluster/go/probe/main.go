// Command probe is the small tool of the test cluster: the first process of its boxes and pods, the content of its one-file image, and the maker
// of its certificates.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

const usage = `usage: probe COMMAND
  pause                  wait for SIGTERM and reap orphans: what a pod's first process does
  env NAME               print a variable and wait for SIGTERM
  write FILE TEXT        write a file
  await FILE             wait until FILE exists, print it and end
  serve ADDRESS TEXT     answer every HTTP request with TEXT
  get URL                wait until URL answers 200, print the answer and end
  fail STATUS TEXT       print TEXT and end with STATUS
  pki DIR FLAGS          make a certificate authority and what it signs
`

// commands by name, each with the number of arguments it wants; -1 is any.
var commands = map[string]struct {
	arguments int
	run       func([]string) error
}{
	"pause": {0, func([]string) error { pause(); return nil }},
	"env":   {1, func(a []string) error { fmt.Printf("%s=%s\n", a[0], os.Getenv(a[0])); pause(); return nil }},
	"write": {2, func(a []string) error { return os.WriteFile(a[0], []byte(a[1]), 0o644) }},
	"await": {1, func(a []string) error { return await(a[0]) }},
	"serve": {2, func(a []string) error { return serve(a[0], a[1]) }},
	"get":   {1, func(a []string) error { return get(a[0]) }},
	"pki":   {-1, pki},
}

// pause reaps children that others left, and returns at SIGTERM or SIGINT.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
		if received := <-signals; received != syscall.SIGCHLD {
			return
		}
	}
}

func await(path string) error {
	for {
		text, err := os.ReadFile(path)
		if err == nil {
			fmt.Printf("%s\n", text)
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func serve(address, text string) error {
	go func() {
		pause()
		os.Exit(0)
	}()
	return http.ListenAndServe(address, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, text)
	}))
}

func get(url string) error {
	client := http.Client{Timeout: 2 * time.Second}
	for {
		answer, err := client.Get(url)
		if err == nil {
			text, readError := io.ReadAll(answer.Body)
			answer.Body.Close()
			if readError == nil && answer.StatusCode == http.StatusOK {
				fmt.Println(strings.TrimSpace(string(text)))
				return nil
			}
			err = fmt.Errorf("status %d: %v", answer.StatusCode, readError)
		}
		fmt.Fprintln(os.Stderr, err)
		time.Sleep(100 * time.Millisecond)
	}
}

func main() {
	log.SetFlags(0)
	arguments := slices.Clone(os.Args[1:])
	if len(arguments) == 3 && arguments[0] == "fail" {
		fmt.Println(arguments[2])
		status := 1
		fmt.Sscan(arguments[1], &status)
		os.Exit(status)
	}
	if len(arguments) > 0 {
		command, known := commands[arguments[0]]
		if known && (command.arguments < 0 || command.arguments == len(arguments)-1) {
			if err := command.run(arguments[1:]); err != nil {
				log.Fatal(err)
			}
			return
		}
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
}
