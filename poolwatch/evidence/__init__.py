"""What can be found out about a worker from outside: its stacks, its memory, its last words."""
