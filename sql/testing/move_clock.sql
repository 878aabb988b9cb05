-- Turn a test harness's clock to a time.
update eventflow.clock set at = %(now)s
