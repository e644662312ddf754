def simulated_tables(): return iter(())
