"""Where jobs run: in this process, in several, on a Ray cluster, whatever a job is."""
